//! Bodies: JSON in UTF-8, bounded.
//!
//! | what is wrong | answer |
//! |---|---|
//! | longer than `http.body_max` | 413 |
//! | another type than JSON | 415 |
//! | not UTF-8, not JSON, nested too deeply | 400 |
//! | a wrong type, an unknown or a missing field | 422 with a pointer |

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use bytes::{Bytes, BytesMut};
use common::job::invalid::escape;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::problem::{Code, FieldError, Problem};
use crate::state::App;

/// A body that was read whole and is UTF-8 text.
#[derive(Clone, Debug)]
pub struct RawBody(Bytes);

impl RawBody {
    /// The text.
    pub fn text(&self) -> &str {
        // Checked when it was read.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The bytes, for a fingerprint.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromRequest<App> for RawBody {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| !is_json(kind.to_str().unwrap_or_default())) {
            return Err(Problem::new(
                Code::UnsupportedMediaType,
                "send the body as application/json",
            ));
        }
        let body = read(request.into_body(), app.config().http.body_max).await?;
        if std::str::from_utf8(&body).is_err() {
            return Err(Problem::new(Code::MalformedBody, "the body is not UTF-8"));
        }
        Ok(Self(body))
    }
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Reads a whole body, which may come in pieces.
async fn read(body: Body, max: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_broken| Problem::new(Code::MalformedBody, "the body ended too early"))?;
        if first.len() + rest.len() + chunk.len() > max {
            return Err(Problem::new(Code::TooLarge, format!("the body is over {max} bytes")));
        }
        if rest.is_empty() && first.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&chunk);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// A JSON body of a known shape.
#[derive(Clone, Debug)]
pub struct ValidJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for ValidJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let body = RawBody::from_request(request, app).await?;
        from_json(body.text(), "").map(Self)
    }
}

/// A JSON body of a known shape that may be left out.
#[derive(Clone, Debug)]
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<App> for OptionalJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let body = RawBody::from_request(request, app).await?;
        if body.is_empty() {
            Ok(Self(T::default()))
        } else {
            from_json(body.text(), "").map(Self)
        }
    }
}

/// Reads a JSON object that stands at `base` in the body. Everything that we take is an object; without this check
/// serde would read an array as the fields of a struct in their order.
///
/// # Errors
/// 400 when it is not JSON, 422 with a pointer when it is another shape than `T`.
pub fn from_json<T: DeserializeOwned>(text: &str, base: &str) -> Result<T, Problem> {
    from_json_beside(text, base, &[])
}

/// As [`from_json`], for an object whose other fields, `beside`, somebody else reads: an unknown field's error names them
/// too.
///
/// # Errors
/// As [`from_json`].
pub fn from_json_beside<T: DeserializeOwned>(text: &str, base: &str, beside: &[&str]) -> Result<T, Problem> {
    if !text.trim_ascii_start().starts_with('{') {
        return Err(match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => Problem::invalid(vec![FieldError::body(base, "is not an object")]),
            Err(error) => Problem::new(Code::MalformedBody, error.to_string()),
        });
    }
    // The path is only known to a slower reader, which is asked when it is needed.
    let error = match serde_json::from_str::<T>(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // A number where an enum is expected is a syntax error to serde_json, though the text is JSON.
    let is_malformed = error.classify() != Category::Data && serde_json::from_str::<serde_json::Value>(text).is_err();
    if is_malformed {
        return Err(Problem::new(Code::MalformedBody, error.to_string()));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let pointer = match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) => format!("{base}{}", pointer(error.path())),
        Ok(_) => base.to_owned(),
    };
    let is_own = pointer
        .strip_prefix(base)
        .is_some_and(|below| below.matches('/').count() == 1);
    let mut message = error.to_string();
    if is_own {
        // Serde's words for a field that is none of three or more.
        let others: String = beside.iter().flat_map(|name| ["`", name, "`, "]).collect();
        message = message.replacen("expected one of ", &format!("expected one of {others}"), 1);
    }
    Err(Problem::invalid(vec![FieldError::body(pointer, message)]))
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .map(|segment| match segment {
            Segment::Seq { index } => format!("/{index}"),
            Segment::Map { key } => format!("/{}", escape(key)),
            Segment::Enum { variant } => format!("/{}", escape(variant)),
            Segment::Unknown => String::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Shape {
        items: Vec<u8>,
        choice: Option<Choice>,
        note: Option<String>,
    }

    #[derive(Debug, serde::Deserialize)]
    enum Choice {
        One,
    }

    #[rstest::rstest]
    #[case::syntax("{", Code::MalformedBody, None)]
    #[case::wrong_type(r#"{"items":[1,"x"]}"#, Code::InvalidRequest, Some("/base/items/1"))]
    #[case::unknown_field(r#"{"a/b":1}"#, Code::InvalidRequest, Some("/base/a~1b"))]
    #[case::enum_from_number(r#"{"items":[],"choice":1}"#, Code::InvalidRequest, Some("/base/choice"))]
    #[case::out_of_range(r#"{"items":[-1]}"#, Code::InvalidRequest, Some("/base/items/0"))]
    fn a_fault_has_a_code_and_a_place(#[case] text: &str, #[case] code: Code, #[case] pointer: Option<&str>) {
        let problem = from_json::<Shape>(text, "/base").unwrap_err();
        assert_eq!(problem.code(), code);
        let first = problem
            .document()
            .errors
            .first()
            .and_then(|error| error.pointer.clone());
        assert_eq!(first.as_deref(), pointer);
    }

    #[test]
    fn an_unknown_field_is_told_with_those_that_somebody_else_reads() {
        let told = |text: &str| {
            let problem = from_json_beside::<Shape>(text, "/base", &["text", "parts"]).unwrap_err();
            problem.document().errors[0].detail.clone()
        };
        let message = told(r#"{"txet":"hello"}"#);
        assert!(
            message.starts_with("unknown field `txet`, expected one of `text`, `parts`, `items`"),
            "{message}"
        );
        let below = told(r#"{"items":[],"choice":"Two"}"#);
        assert!(!below.contains("`parts`"), "{below}");
    }

    #[test]
    fn deep_nesting_is_refused() {
        let text = format!("{{\"items\":{}", "[".repeat(100_000));
        assert_eq!(
            from_json::<serde_json::Value>(&text, "").unwrap_err().code(),
            Code::MalformedBody
        );
    }

    #[rstest::rstest]
    #[case(10, true)]
    #[case(11, false)]
    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit(#[case] length: usize, #[case] fits: bool) {
        let bytes = vec![b'x'; length];
        let chunks: Vec<_> = bytes
            .chunks(3)
            .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
            .collect();
        let read = read(Body::from_stream(stream::iter(chunks)), 10).await;
        assert_eq!(read.is_ok_and(|read| read == bytes), fits);
    }
}
