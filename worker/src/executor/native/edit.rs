//! The `edit` tool's pure part: replacing one passage of a text.

/// Why a text was not edited; the Display is for the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// There is nothing to look for.
    #[error("`old` is empty; use `write` to make a file")]
    NothingToReplace,
    /// Nothing would change.
    #[error("`old` and `new` are the same")]
    NoChange,
    /// The passage is not there.
    #[error("`old` does not occur in the file; read it again and copy the passage exactly")]
    NotFound,
    /// The passage is not the only one.
    #[error("`old` occurs {0} times; take in more of the lines around it, so that it occurs once")]
    Ambiguous(usize),
}

/// `text` with its only occurrence of `old` replaced by `new`.
///
/// # Errors
/// Those of [`EditError`]; the text is to be left as it is then.
pub fn apply(text: &str, old: &str, new: &str) -> Result<String, EditError> {
    if old.is_empty() {
        return Err(EditError::NothingToReplace);
    }
    if old == new {
        return Err(EditError::NoChange);
    }
    match text.matches(old).count() {
        0 => Err(EditError::NotFound),
        1 => Ok(text.replacen(old, new, 1)),
        n => Err(EditError::Ambiguous(n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passage_is_replaced_and_everything_else_is_refused() {
        assert_eq!(apply("a b c", "b", "$1 x"), Ok("a $1 x c".to_owned()));
        assert_eq!(apply("a b c", "", "x"), Err(EditError::NothingToReplace));
        assert_eq!(apply("a b c", "b", "b"), Err(EditError::NoChange));
        assert_eq!(apply("a b c", "d", "x"), Err(EditError::NotFound));
        assert_eq!(apply("a b a", "a", "x"), Err(EditError::Ambiguous(2)));
    }
}
