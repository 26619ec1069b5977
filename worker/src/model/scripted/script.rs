//! Scripts: rules that say what to answer to what.
//!
//! A script is a JSON file. The first rule whose `when` holds is played; a script whose rules all fail answers so. A rule
//! may play a recording instead: the bytes of a real server's stream, on either wire.
//! ```json
//! {"pause": "20ms", "rules": [
//!   {"when": {"user_contains": "weather", "step": 0},
//!    "reply": [{"reasoning": "I must look."}, {"tool_call": {"name": "bash", "input": {"command": "curl wttr.in"}}}]},
//!   {"when": {"user_contains": "weather"}, "reply": [{"text": "It says: {{output}}"}]},
//!   {"when": {"user_contains": "poem"}, "recording": {"wire": "anthropic", "file": "poem.sse"}},
//!   {"reply": [{"error": {"status": 529, "kind": "overloaded_error"}}]}
//! ]}
//! ```

use std::time::Duration;

use common::message::{Message, Part, Role, Usage};
use serde::Deserialize;
use serde_json::Value;

use super::demo;
use super::recording::Recording;
use crate::model::ModelRequest;

/// Characters of one streamed piece, unless the script says otherwise.
const PIECE_CHARS: usize = 8;

/// What a model does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The rules, in order. None at all means the built-in demonstration.
    #[serde(default)]
    pub rules: Option<Vec<Rule>>,
    /// Pause before each piece.
    #[serde(default, with = "humantime_serde")]
    pub pause: Duration,
    /// Characters of each piece.
    #[serde(default = "piece_chars")]
    pub piece_chars: usize,
}

fn piece_chars() -> usize {
    PIECE_CHARS
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// When it is played; always when empty.
    #[serde(default)]
    pub when: When,
    /// What is said and done.
    #[serde(default)]
    pub reply: Vec<Action>,
    /// What is played instead.
    #[serde(default)]
    pub recording: Option<Recording>,
}

/// A condition: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    /// The user's last text contains this.
    pub user_contains: Option<String>,
    /// The output of a tool that was called last contains this.
    pub output_contains: Option<String>,
    /// So many rounds of tool results came since the user's last text.
    pub step: Option<usize>,
}

/// One thing that a reply says or does. `{{user}}` and `{{output}}` in texts stand for the user's last text and the
/// outputs of the tools that were called last.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Says a text, in pieces.
    Text(String),
    /// Thinks aloud, in pieces.
    Reasoning(String),
    /// Calls a tool.
    ToolCall {
        /// The tool.
        name: String,
        /// Its input. A string is sent as it is, so that it may be broken JSON.
        input: Value,
    },
    /// Waits.
    Wait(#[serde(with = "humantime_serde")] Duration),
    /// Ends for this reason instead of the usual one.
    Stop(crate::model::StopReason),
    /// Refuses: as an HTTP status when nothing was said before, else inside the stream.
    Error {
        /// The HTTP status.
        status: u16,
        /// The provider's name for it.
        kind: String,
        /// The provider's words.
        #[serde(default)]
        message: String,
        /// How long to wait before another try.
        #[serde(default, with = "humantime_serde")]
        retry_after: Option<Duration>,
    },
    /// Reports these totals instead of the counted ones, cache classes included.
    Usage(Usage),
    /// Breaks the connection.
    Cut,
    /// Falls silent for ever.
    Stall,
}

impl Script {
    /// The built-in demonstration.
    pub fn demo(pause: Duration) -> Self {
        Self {
            rules: None,
            pause,
            piece_chars: PIECE_CHARS,
        }
    }

    /// A script of these rules, without pauses.
    pub fn of(rules: Vec<Rule>) -> Self {
        Self {
            rules: Some(rules),
            pause: Duration::ZERO,
            piece_chars: PIECE_CHARS,
        }
    }

    /// The recording that it plays to `request`; none when it plays actions.
    pub fn recording(&self, request: &ModelRequest) -> Option<&Recording> {
        let scene = Scene::of(&request.messages);
        let rule = self.rules.as_ref()?.iter().find(|rule| rule.when.holds(&scene))?;
        rule.recording.as_ref()
    }

    /// What it does with `request`.
    pub fn reply(&self, request: &ModelRequest) -> Vec<Action> {
        let scene = Scene::of(&request.messages);
        let Some(rules) = &self.rules else {
            return demo::reply(&scene, request);
        };
        match rules.iter().find(|rule| rule.when.holds(&scene)) {
            Some(rule) => rule.reply.iter().map(|action| fill(action, &scene)).collect(),
            None => vec![Action::Text(
                "No rule of this script fits. This answer is scripted.".to_owned(),
            )],
        }
    }
}

/// What a rule may look at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scene {
    /// The user's last text.
    pub(super) user: String,
    /// What the tools that were called last answered, as (failed, output); empty when the user spoke since.
    pub(super) outputs: Vec<(bool, String)>,
    /// Rounds of tool results since the user's last text.
    pub(super) step: usize,
}

impl Scene {
    fn of(messages: &[Message]) -> Self {
        let mut scene = Self {
            user: String::new(),
            outputs: Vec::new(),
            step: 0,
        };
        for message in messages.iter().filter(|message| message.role == Role::User) {
            let text = message.text();
            if text.is_empty() {
                scene.step += 1;
                scene.outputs = message.parts.iter().filter_map(output).collect();
            } else {
                // Results beside a text belong to a turn that was stopped.
                scene = Self {
                    user: text,
                    outputs: Vec::new(),
                    step: 0,
                };
            }
        }
        scene
    }

    fn output(&self) -> String {
        let outputs: Vec<&str> = self.outputs.iter().map(|(_, output)| output.as_str()).collect();
        outputs.join("\n")
    }
}

fn output(part: &Part) -> Option<(bool, String)> {
    match part {
        Part::ToolResult { is_error, output, .. } => Some((*is_error, output.clone())),
        _ => None,
    }
}

impl When {
    fn holds(&self, scene: &Scene) -> bool {
        self.user_contains.as_ref().is_none_or(|text| scene.user.contains(text))
            && self
                .output_contains
                .as_ref()
                .is_none_or(|text| scene.output().contains(text))
            && self.step.is_none_or(|step| scene.step == step)
    }
}

fn fill(action: &Action, scene: &Scene) -> Action {
    let fill = |text: &str| {
        text.replace("{{user}}", &scene.user)
            .replace("{{output}}", &scene.output())
    };
    match action {
        Action::Text(text) => Action::Text(fill(text)),
        Action::Reasoning(text) => Action::Reasoning(fill(text)),
        other => other.clone(),
    }
}
