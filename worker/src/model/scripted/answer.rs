//! The scripted provider as a server: from a route and a body to a status, headers and frames.

use common::message::Usage;
use serde_json::{Value, json};

use super::frame::Frame;
use super::perform::{Step, request_tokens};
use super::read::{Asked, read};
use super::{Scripted, anthropic, openai};
use crate::model::Answer;
use crate::model::error::{Reason, Refusal};
use crate::model::wire::{Route, Wire};

/// An answer as it goes over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body, step by step.
    pub frames: Vec<Frame>,
    /// The refusal, when it is one.
    pub refusal: Option<Refusal>,
}

impl Scripted {
    /// Answers a call.
    pub fn answer(&self, route: Route, body: &[u8]) -> Response {
        let wire = match route {
            Route::Models => return self.models(),
            Route::ChatCompletions => Wire::OpenAi,
            Route::Messages | Route::CountTokens => Wire::Anthropic,
        };
        let asked = match read(wire, body) {
            Ok(asked) => asked,
            Err(message) => return refused(wire, &invalid(message)),
        };
        if route == Route::CountTokens {
            return document(&json!({"input_tokens": request_tokens(&asked.request)}), Vec::new());
        }
        let steps = self.play(&asked.model, &asked.request);
        match steps.first() {
            Some(Step::Refuse(refusal)) => refused(wire, refusal),
            _ if asked.streams => streamed(wire, &asked, &steps),
            _ => whole(wire, &asked.model, &steps),
        }
    }

    fn models(&self) -> Response {
        let model = |name: &str| {
            json!({"id": name, "type": "model", "display_name": format!("{name} (scripted)"),
                   "created_at": "2026-01-01T00:00:00Z", "object": "model", "created": 0, "owned_by": "scripted"})
        };
        let data: Vec<Value> = self.names().map(model).collect();
        let end = |model: Option<&Value>| model.map(|model| model["id"].clone());
        let (first, last) = (end(data.first()), end(data.last()));
        let list = json!({"object": "list", "data": data, "has_more": false, "first_id": first, "last_id": last});
        document(&list, Vec::new())
    }
}

fn streamed(wire: Wire, asked: &Asked, steps: &[Step]) -> Response {
    let frames = match wire {
        Wire::Anthropic => anthropic::frames(&asked.model, steps),
        Wire::OpenAi => openai::frames(&asked.model, steps, asked.wants_usage),
    };
    Response {
        status: 200,
        headers: vec![
            ("content-type", "text/event-stream; charset=utf-8".to_owned()),
            ("cache-control", "no-cache".to_owned()),
            named(wire),
        ],
        frames,
        refusal: None,
    }
}

/// The answer in one piece. A stream that would end with an error is that error; one that would break off breaks off.
fn whole(wire: Wire, model: &str, steps: &[Step]) -> Response {
    let mut answer = Answer::new("scripted");
    let mut frames = Vec::new();
    for step in steps {
        match step {
            Step::Event(event) => answer.push(event.clone()),
            Step::Wait(pause) => frames.push(Frame::Wait(*pause)),
            Step::Refuse(refusal) => return refused(wire, refusal),
            Step::Cut | Step::Stall => {
                frames.push(if *step == Step::Cut { Frame::Cut } else { Frame::Stall });
                return Response {
                    frames,
                    ..document(&json!({}), Vec::new())
                };
            }
        }
    }
    let finished = answer.finish();
    frames.push(Frame::Told(finished.usage));
    let body = match wire {
        Wire::Anthropic => anthropic::whole(model, &finished),
        Wire::OpenAi => openai::whole(model, &finished),
    };
    frames.push(Frame::Event(body.to_string()));
    Response {
        frames,
        ..document(&json!({}), vec![named(wire)])
    }
}

fn named(wire: Wire) -> (&'static str, String) {
    match wire {
        Wire::Anthropic => ("request-id", "req_scripted".to_owned()),
        Wire::OpenAi => ("x-request-id", "req_scripted".to_owned()),
    }
}

fn document(body: &Value, more: Vec<(&'static str, String)>) -> Response {
    let mut headers = vec![("content-type", "application/json".to_owned())];
    headers.extend(more);
    Response {
        status: 200,
        headers,
        frames: vec![Frame::Event(body.to_string())],
        refusal: None,
    }
}

fn refused(wire: Wire, refusal: &Refusal) -> Response {
    let body = match wire {
        Wire::Anthropic => anthropic::error_body(refusal),
        Wire::OpenAi => openai::error_body(refusal),
    };
    let mut headers = vec![("content-type", "application/json".to_owned()), named(wire)];
    if let Some(wait) = refusal.retry_after {
        headers.push(("retry-after", format!("{}", wait.as_secs_f64())));
    }
    if let Some(advice) = refusal.should_retry {
        headers.push(("x-should-retry", advice.to_string()));
    }
    Response {
        status: refusal.status.unwrap_or(500),
        headers,
        frames: vec![Frame::Event(body)],
        refusal: Some(refusal.clone()),
    }
}

fn invalid(message: String) -> Refusal {
    Refusal {
        reason: Reason::InvalidRequest,
        status: Some(400),
        kind: "invalid_request_error".to_owned(),
        message,
        request_id: None,
        retry_after: None,
        should_retry: None,
    }
}

/// What it has told its clients that they used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Answers that were whole.
    pub calls: u64,
    /// Their tokens.
    pub usage: Usage,
}
