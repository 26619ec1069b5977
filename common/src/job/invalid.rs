//! What is wrong with something that a client sent.

/// One field that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// Where it is: a JSON pointer (RFC 6901) into the document.
    pub pointer: String,
    /// What is wrong, for people.
    pub detail: String,
}

impl InvalidField {
    /// A refused field.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// Writes one step of a JSON pointer: `~` and `/` are escaped.
pub fn escape(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}
