//! What a user says: one text, or typed parts.

use common::message::Part;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// A part of a user's message: the fields of a [`Part`], and no others. What is stored is read more leniently.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(in crate::routes) enum SaidPart {
    /// Plain text or Markdown.
    Text { text: String },
    /// A file of the conversation's workspace.
    File {
        path: String,
        media_type: Option<String>,
        bytes: Option<u64>,
    },
    /// What only models and programs say.
    #[serde(other)]
    Foreign,
}

impl SaidPart {
    fn into_part(self) -> Option<Part> {
        Some(match self {
            Self::Text { text } => Part::Text { text },
            Self::File {
                path,
                media_type,
                bytes,
            } => Part::File {
                path,
                media_type,
                bytes,
            },
            Self::Foreign => return None,
        })
    }
}

/// The message that stands at `base` in a body, as `text` or as `parts`.
///
/// # Errors
/// 422 when there is not exactly one of both, or it is no user's message.
pub(in crate::routes) fn said(
    text: Option<String>,
    parts: Option<Vec<SaidPart>>,
    base: &str,
) -> Result<Vec<Part>, Problem> {
    let refused = |place: &str, detail: &str| Problem::field(format!("{base}{place}"), detail);
    let parts = match (text, parts) {
        (Some(_), Some(_)) => return Err(refused("/parts", "cannot be combined with text")),
        (None, None) => return Err(refused("/text", "is required, or parts")),
        (Some(text), None) if text.is_empty() => return Err(refused("/text", "is empty")),
        (Some(text), None) => return Ok(vec![Part::text(text)]),
        (None, Some(parts)) if parts.is_empty() => return Err(refused("/parts", "is empty")),
        (None, Some(parts)) => parts,
    };
    let foreign = |index| {
        let place = format!("/parts/{index}/type");
        refused(&place, "is text or file in a user's message")
    };
    let parts = parts.into_iter().enumerate();
    parts
        .map(|(index, part)| part.into_part().ok_or_else(|| foreign(index)))
        .collect()
}
