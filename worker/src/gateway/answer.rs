//! What the gateway itself answers, in the words of the wire that was asked.

use bytes::Bytes;
use serde_json::{Value, json};

use super::check::Fault;
use crate::model::error::{Class, Phase, Reason};
use crate::model::wire::Route;
use crate::model::{Error, ModelName};

/// A refusal: its status, the wires' name for it, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) kind: String,
    pub(super) message: String,
    /// Whether the program's client may ask again by itself.
    pub(super) may_retry: bool,
    pub(super) retry_after_s: Option<u64>,
}

impl Refusal {
    /// One that is the same however often it is asked.
    pub(super) fn new(status: u16, kind: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind: kind.to_owned(),
            message: message.into(),
            may_retry: false,
            retry_after_s: None,
        }
    }

    /// The body, for a client of this route; one that asked for something else reads either.
    pub(super) fn body(&self, route: Option<Route>) -> Bytes {
        let error = json!({"type": self.kind, "message": self.message, "code": self.kind, "param": null});
        let body = match route {
            Some(Route::ChatCompletions) => json!({"error": error}),
            _ => json!({"type": "error", "error": error}),
        };
        body.to_string().into()
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let (status, kind) = match fault {
            Fault::Malformed(_) => (400, "invalid_request_error"),
            Fault::NotNamed { .. } => (403, "permission_error"),
        };
        Self::new(status, kind, fault.to_string())
    }
}

impl From<&Error> for Refusal {
    /// A provider's words about our key stay here; what it says about the request is passed on.
    fn from(error: &Error) -> Self {
        let message = error.failure().message;
        let is_later = match error {
            // The same answer takes as long again, and costs as much.
            Error::Timeout { phase, .. } => *phase != Phase::Answer,
            error => matches!(error.class(), Class::Transient | Class::Timeout),
        };
        let (status, kind) = match error {
            Error::Refused(refusal) => match refusal.reason {
                Reason::InvalidRequest => (400, "invalid_request_error"),
                Reason::TooLarge => (413, "request_too_large"),
                Reason::NotFound => (404, "not_found_error"),
                Reason::SpendLimit => (402, "billing_error"),
                Reason::RateLimited => (429, "rate_limit_error"),
                Reason::Overloaded => (529, "overloaded_error"),
                Reason::Timeout => (504, "timeout_error"),
                // The program's own token is fine: it must not look for another.
                Reason::Authentication | Reason::Server => (502, "api_error"),
            },
            Error::Budget { .. } | Error::Unpriced { .. } => (402, "billing_error"),
            Error::Held { .. } => (429, "rate_limit_error"),
            Error::Timeout { .. } => (504, "timeout_error"),
            Error::UnknownProvider { .. } | Error::NoModel => (404, "not_found_error"),
            _ => (502, "api_error"),
        };
        Self {
            may_retry: is_later,
            retry_after_s: error.retry_after().map(|wait| wait.as_secs().max(1)),
            ..Self::new(status, kind, message)
        }
    }
}

/// The agent's models, as both wires list them.
pub(super) fn models(models: &[ModelName]) -> Bytes {
    let model = |name: &ModelName| {
        json!({"id": name.model(), "object": "model", "type": "model", "display_name": name.model(), "created": 0,
            "created_at": "1970-01-01T00:00:00Z", "owned_by": name.provider()})
    };
    let data: Vec<Value> = models.iter().map(model).collect();
    let (first, last) = (
        models.first().map(ModelName::model),
        models.last().map(ModelName::model),
    );
    json!({"object": "list", "data": data, "has_more": false, "first_id": first, "last_id": last})
        .to_string()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Refusal as Provided;

    #[test]
    fn what_a_provider_says_about_the_key_stays_outside() {
        let error = Error::Refused(Box::new(Provided {
            reason: Reason::Authentication,
            status: Some(401),
            kind: "authentication_error".to_owned(),
            message: "Incorrect API key provided: sk-secret".to_owned(),
            request_id: None,
            retry_after: None,
            should_retry: None,
        }));
        let refusal = Refusal::from(&error);
        assert_eq!(refusal.status, 502);
        let body = String::from_utf8(refusal.body(Some(Route::Messages)).to_vec()).unwrap();
        assert!(
            !body.contains("sk-secret") && body.contains("does not accept the key"),
            "{body}"
        );
    }

    #[test]
    fn an_answer_that_takes_too_long_is_not_asked_for_again() {
        let limit = std::time::Duration::from_mins(10);
        let late = |phase| Refusal::from(&Error::Timeout { phase, limit });
        assert_eq!(
            (late(Phase::Answer).status, late(Phase::Answer).may_retry),
            (504, false)
        );
        assert!(late(Phase::FirstByte).may_retry);
    }

    #[test]
    fn errors_have_the_shape_of_their_wire() {
        let refusal = Refusal::new(404, "not_found_error", "x");
        let read = |route| serde_json::from_slice::<Value>(&refusal.body(route)).unwrap();
        assert_eq!(read(Some(Route::Messages))["type"], "error");
        assert_eq!(read(Some(Route::ChatCompletions))["error"]["code"], "not_found_error");
        assert!(read(Some(Route::ChatCompletions))["type"].is_null());
    }
}
