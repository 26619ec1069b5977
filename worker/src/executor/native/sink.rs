//! Who is told what happens in a turn, while it happens.

use common::job::event::EventBody;
use common::message::{Message, Usage};
use common::money::Usd;
use common::store::usage::Call;
use serde::Serialize;
use serde_json::{Value, json};

use super::{ToolCall, ToolOutcome};
use crate::model::ModelName;

/// Is told what happens in a turn, in order. Methods must not block: they hand on, or drop and count.
pub trait TurnSink: Send + Sync {
    /// More of the answer's text.
    fn text_delta(&self, text: &str);
    /// More of the reasoning.
    fn reasoning_delta(&self, text: &str);
    /// A tool begins.
    fn tool_started(&self, call: &ToolCall);
    /// A tool printed something.
    fn tool_output(&self, tool_call_id: &str, text: &str);
    /// A tool ended.
    fn tool_finished(&self, tool_call_id: &str, outcome: &ToolOutcome);
    /// A call of the model is over, and this is what it used.
    fn usage(&self, call: &CallUsage);
    /// A message is whole and belongs to the conversation from now on.
    fn message(&self, message: &Message);
    /// Something else that a person may want to know.
    fn status(&self, phase: &str, detail: Option<&str>);
}

/// What one call of a model used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallUsage {
    /// Number of the call in this attempt, from 0: with job and attempt the key under which it is stored.
    pub call: u32,
    /// The model that was asked.
    #[serde(serialize_with = "as_text")]
    pub model: ModelName,
    /// Its tokens.
    #[serde(flatten)]
    pub usage: Usage,
    /// What it cost, US dollars; none when no price is known.
    pub cost_usd: Option<Usd>,
}

impl CallUsage {
    /// What is written down of a call of `model`.
    pub fn new(model: &ModelName, fact: &Call) -> Self {
        Self {
            call: fact.call,
            model: model.clone(),
            usage: fact.usage,
            cost_usd: fact.cost,
        }
    }
}

fn as_text<S: serde::Serializer>(model: &ModelName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(model)
}

/// A sink that makes a job's events of what it is told, and hands them to a function.
#[derive(Clone, Copy, Debug)]
pub struct EventSink<F>(F);

impl<F: Fn(EventBody) + Send + Sync> EventSink<F> {
    /// A sink that hands each event to `emit`, which must not block.
    pub fn new(emit: F) -> Self {
        Self(emit)
    }
}

impl<F: Fn(EventBody) + Send + Sync> TurnSink for EventSink<F> {
    fn text_delta(&self, text: &str) {
        (self.0)(EventBody::MessageDelta { text: text.to_owned() });
    }

    fn reasoning_delta(&self, text: &str) {
        (self.0)(EventBody::ReasoningDelta { text: text.to_owned() });
    }

    fn tool_started(&self, call: &ToolCall) {
        let ToolCall { id, name, input } = call.clone();
        (self.0)(EventBody::ToolStarted {
            tool_call_id: id,
            name,
            input,
        });
    }

    fn tool_output(&self, tool_call_id: &str, text: &str) {
        (self.0)(EventBody::ToolOutput {
            tool_call_id: tool_call_id.to_owned(),
            text: text.to_owned(),
        });
    }

    fn tool_finished(&self, tool_call_id: &str, outcome: &ToolOutcome) {
        let output = Value::String(outcome.output.clone());
        let tool_call_id = tool_call_id.to_owned();
        (self.0)(EventBody::ToolFinished {
            tool_call_id,
            is_error: outcome.is_error,
            output,
        });
    }

    fn usage(&self, call: &CallUsage) {
        (self.0)(EventBody::Usage { usage: json!(call) });
    }

    fn message(&self, message: &Message) {
        (self.0)(EventBody::Message {
            message: json!(message),
        });
    }

    fn status(&self, phase: &str, detail: Option<&str>) {
        (self.0)(EventBody::Status {
            phase: phase.to_owned(),
            detail: detail.map(str::to_owned),
        });
    }
}
