//! Tools: what the model may call, and the seam to whoever runs it.

mod definitions;
mod input;

use std::fmt;

use common::job::{Failure, FailureCode};
use common::message::Part;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TurnSink;
use crate::model::ToolDefinition;
pub use definitions::{UnknownTool, definitions};
pub use input::{InvalidInput, ToolInput};

/// The model asks for a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Names the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its input, an object.
    pub input: Value,
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutcome {
    /// What the model is shown.
    pub output: String,
    /// Whether the tool failed. The model is told, and goes on.
    pub is_error: bool,
}

impl ToolOutcome {
    /// A tool that did its work.
    pub fn ok(output: impl Into<String>) -> Self {
        Self {
            output: output.into(),
            is_error: false,
        }
    }

    /// A tool that failed.
    pub fn error(output: impl Into<String>) -> Self {
        Self {
            output: output.into(),
            is_error: true,
        }
    }
}

/// The place where tools run is gone, and the turn with it. Not the same as a tool that failed.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox was lost")]
pub struct ToolsLost(#[source] pub Box<dyn std::error::Error + Send + Sync>);

impl ToolsLost {
    /// What it means for the job.
    pub fn failure(&self) -> Failure {
        match self.0.downcast_ref::<ToolsFailed>() {
            Some(ToolsFailed(failure)) => failure.clone(),
            None => Failure::new(FailureCode::SandboxFailed, self.to_string()),
        }
    }
}

/// Why the place where tools run cannot be used, where that is known: the source of a [`ToolsLost`].
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
pub struct ToolsFailed(pub Failure);

/// Runs tools; several at once.
pub trait Tools: Send + Sync {
    /// The tools that there are; the model is offered these and no others.
    fn definitions(&self) -> Vec<ToolDefinition>;

    /// The model has begun to write a call of `name`: whatever takes time may be started now. Must not block.
    fn prepare(&self, _name: &str) {}

    /// Runs one call. Output may be passed to `sink` while it comes; started and finished are said by the loop.
    ///
    /// The future is dropped when the turn is cancelled: whatever it started must end with it. The calls of one answer
    /// run at once, and are begun in their order.
    ///
    /// # Errors
    /// [`ToolsLost`] when nothing can be run any more.
    fn call<'a>(&'a self, call: &'a ToolCall, sink: &'a dyn TurnSink) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>>;
}

/// No tools at all.
#[derive(Clone, Copy, Debug)]
pub struct NoTools;

impl Tools for NoTools {
    fn definitions(&self) -> Vec<ToolDefinition> {
        Vec::new()
    }

    fn call<'a>(
        &'a self,
        call: &'a ToolCall,
        _sink: &'a dyn TurnSink,
    ) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>> {
        let outcome = ToolOutcome::error(unknown_tool(&call.name, ""));
        async { Ok(outcome) }.boxed()
    }
}

/// A call as the model made it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) call: ToolCall,
    /// What is wrong with its input.
    pub(super) fault: Option<String>,
}

/// The calls among the parts of an answer. `faults` are those with unusable input, as (id, what is wrong).
pub(super) fn calls(parts: &[Part], faults: &[(String, String)]) -> Vec<Asked> {
    let calls = parts.iter().filter_map(|part| match part {
        Part::ToolCall { id, name, input } => Some(ToolCall {
            id: id.clone(),
            name: name.clone(),
            input: input.clone(),
        }),
        _ => None,
    });
    calls
        .map(|call| {
            let fault = faults.iter().find(|(id, _)| *id == call.id);
            Asked {
                fault: fault.map(|(_, what)| format!("Not run: {what}.")),
                call,
            }
        })
        .collect()
}

/// What to say to a call of a tool that is not among the `known`.
pub(super) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.collect();
    (!known.contains(&name)).then(|| unknown_tool(name, &known.join(", ")))
}

fn unknown_tool(name: &str, known: &(impl fmt::Display + ?Sized)) -> String {
    format!("Not run: there is no tool {name:?}. Tools: [{known}].")
}
