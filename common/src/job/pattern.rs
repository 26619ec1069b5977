//! Patterns of files to keep. A sandbox's init matches them when the program has run, so what is wrong with one must be
//! known before: here, by the same parser.

use globset::GlobBuilder;

use super::exec::path_fault;

/// Most braces of one pattern. Each is a level of what it is compiled to, which has no more than some hundred.
const BRACES_MAX: usize = 32;

/// What is wrong with a pattern of paths below the workspace.
pub(super) fn fault(pattern: &str) -> Option<String> {
    if let Some(detail) = path_fault(pattern) {
        return Some(detail.to_owned());
    }
    if pattern.matches('{').count() > BRACES_MAX {
        return Some(format!("has more than {BRACES_MAX} braces"));
    }
    let parsed = GlobBuilder::new(pattern).literal_separator(true).build();
    parsed.err().map(|error| format!("is no pattern: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use globset::GlobSetBuilder;

    use super::super::exec::{ARTIFACTS_MAX, PATH_BYTES_MAX};
    use super::*;

    #[test]
    fn what_is_no_pattern_is_told() {
        for pattern in ["out/*.png", "**/*.{csv,json}", "a?[0-9][!a].txt", "{a,{b,c}}", r"a\*b"] {
            assert_eq!(fault(pattern), None, "{pattern}");
        }
        for pattern in [
            "out/[a",
            "[z-a]",
            "a{b",
            "a}b",
            "a\\",
            "",
            "/etc/*",
            "../*",
            &"{".repeat(33),
        ] {
            assert!(fault(pattern).is_some(), "{pattern}");
        }
    }

    #[test]
    fn what_is_accepted_can_be_compiled_however_much_there_is_of_it() {
        let steps = |step: &str, times: usize| [step.repeat(times).as_str(); 4].join("/");
        let nested = "{".repeat(BRACES_MAX) + "a" + &"}".repeat(BRACES_MAX);
        for pattern in [
            steps("?", 255),
            steps("[!a-cx-z]", 28),
            steps("é", 120),
            "**/".repeat(PATH_BYTES_MAX / 3) + "a",
            "{a,b}/".repeat(BRACES_MAX) + "a",
            nested,
        ] {
            assert_eq!(fault(&pattern), None, "{pattern}");
            let mut set = GlobSetBuilder::new();
            for _ in 0..ARTIFACTS_MAX {
                set.add(GlobBuilder::new(&pattern).literal_separator(true).build().unwrap());
            }
            assert!(set.build().is_ok(), "{pattern}");
        }
    }
}
