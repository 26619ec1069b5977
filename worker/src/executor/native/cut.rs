//! Long output cut for the model.

/// The text, with its middle left out and counted when it is longer than `bytes_max`.
///
/// Head and tail are kept in equal parts: what a program does is at its beginning, how it went at its end.
pub fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(bytes_max / 2);
    let tail = text.ceil_char_boundary(text.len() - bytes_max / 2);
    let (head, rest) = text.split_at(head);
    let (middle, tail) = rest.split_at(tail - head.len());
    format!("{head}\n[… {} bytes left out …]\n{tail}", middle.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_text_is_left_alone() {
        assert_eq!(cut("", 0), "");
        assert_eq!(cut("hello", 5), "hello");
    }

    #[test]
    fn the_middle_of_long_text_is_left_out_and_counted() {
        assert_eq!(cut("0123456789", 4), "01\n[… 6 bytes left out …]\n89");
        assert_eq!(cut("ééééé", 6), "é\n[… 6 bytes left out …]\né");
    }

    proptest! {
        #[test]
        fn what_is_kept_is_head_and_tail_within_the_limit(text in "\\PC{0,80}", bytes_max in 0_usize..200) {
            let short = cut(&text, bytes_max);
            if text.len() > bytes_max {
                let (head, rest) = short.split_once("\n[… ").unwrap();
                let (count, tail) = rest.split_once(" bytes left out …]\n").unwrap();
                prop_assert!(head.len() + tail.len() <= bytes_max);
                prop_assert!(text.starts_with(head) && text.ends_with(tail));
                prop_assert_eq!(count.parse::<usize>().unwrap(), text.len() - head.len() - tail.len());
            } else {
                prop_assert_eq!(short, text);
            }
        }
    }
}
