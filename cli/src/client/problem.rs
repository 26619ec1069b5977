//! RFC 9457 problems, told as one sentence.

use std::fmt;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::output::clean;

/// What the server says about a call that it refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    code: Option<String>,
    what: String,
    fields: Vec<Field>,
    request_id: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Field {
    #[serde(default)]
    pointer: String,
    #[serde(default)]
    detail: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    title: Option<String>,
    detail: Option<String>,
    code: Option<String>,
    request_id: Option<String>,
    errors: Vec<Field>,
}

impl Problem {
    /// Reads an answer's body; one that is no problem document (a proxy's page) is told by its status alone.
    pub(crate) fn read(status: StatusCode, body: &[u8]) -> Self {
        let wire: Wire = serde_json::from_slice(body).unwrap_or_default();
        let reason = || status.canonical_reason().unwrap_or("unexpected answer").to_lowercase();
        Self {
            status,
            what: wire.detail.or(wire.title).map_or_else(reason, |text| clean(&text)),
            code: wire.code,
            fields: wire.errors,
            request_id: wire.request_id,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what.trim_end_matches('.');
        // A detail that only repeats the fields is left out: they say it in better words.
        let is_said = self
            .fields
            .iter()
            .any(|field| what.contains(field.detail.trim_end_matches('.')));
        let mut separator = "";
        if !is_said {
            write!(f, "{what}")?;
            separator = ": ";
        }
        for field in &self.fields {
            let pointer = field.pointer.trim_start_matches(['#', '/']).replace('/', ".");
            let space = if pointer.is_empty() { "" } else { " " };
            let detail = field.detail.trim_end_matches('.');
            write!(f, "{separator}{}{space}{}", clean(&pointer), clean(detail))?;
            separator = "; ";
        }
        write!(f, " ({}", self.status.as_u16())?;
        if let Some(code) = &self.code {
            write!(f, " {}", clean(code))?;
        }
        // A person needs the id only to ask the operator about what the answer does not explain.
        if let (true, Some(id)) = (self.status.is_server_error(), &self.request_id) {
            write!(f, ", request {}", clean(id))?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(status: u16, body: &str) -> String {
        Problem::read(StatusCode::from_u16(status).unwrap(), body.as_bytes()).to_string()
    }

    #[test]
    fn names_every_field_that_is_wrong() {
        let body = r##"{"title":"Invalid job","status":422,"detail":"The job is not valid.","code":"invalid_request",
            "errors":[{"pointer":"#/priority","detail":"must be 0 to 9"},{"pointer":"/input/code","detail":"is empty"}]}"##;
        assert_eq!(
            told(422, body),
            "The job is not valid: priority must be 0 to 9; input.code is empty (422 invalid_request)"
        );
    }

    #[test]
    fn does_not_say_a_field_twice() {
        let body =
            r#"{"detail":"/priority must be 0 to 9","errors":[{"pointer":"/priority","detail":"must be 0 to 9"}]}"#;
        assert_eq!(told(422, body), "priority must be 0 to 9 (422)");
    }

    #[test]
    fn a_fault_of_the_server_carries_the_request_id() {
        let body = r#"{"title":"Unavailable","code":"unavailable","request_id":"r-1"}"#;
        assert_eq!(told(503, body), "Unavailable (503 unavailable, request r-1)");
    }

    #[test]
    fn a_page_of_a_proxy_is_told_by_its_status() {
        assert_eq!(told(502, "<html>oops</html>"), "bad gateway (502)");
        assert_eq!(told(404, ""), "not found (404)");
    }

    #[test]
    fn control_characters_of_the_answer_do_not_reach_the_terminal() {
        assert_eq!(told(400, "{\"detail\":\"a\\u001b[31mb\"}"), "a\u{fffd}[31mb (400)");
    }
}
