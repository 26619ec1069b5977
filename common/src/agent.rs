//! Agents: saved definitions of how an answer is made.
//!
//! A run carries a snapshot of the definition in its input, so a worker reads no other row for it.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

mod tools;

use crate::egress::Rule;
use crate::job::exec::{ARGS_BYTES_MAX, is_name, json_len};
use crate::job::invalid::InvalidField;
use crate::job::spec::SlotClass;

pub use crate::egress::Egress;
pub use tools::{AgentTool, PATIENCE, PATIENCE_MAX, ToolPolicy};

/// The environment of those that name none.
pub const DEFAULT_ENVIRONMENT: &str = "default";
/// Longest instructions, bytes.
pub const INSTRUCTIONS_BYTES_MAX: usize = 1024 * 1024;
/// Longest instructions of an agent whose program has them as an argument, bytes: one is below 128 KiB.
pub const INSTRUCTIONS_ARGUMENT_BYTES_MAX: usize = 120 * 1024;
/// Most models, tools or allowed addresses.
pub const LIST_MAX: usize = 100;
/// Most steps of one run.
pub const STEPS_MAX: u32 = 1_000;
/// Shortest time of one attempt. The longest is the operator's setting, which cuts what an agent says.
pub const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Most tokens of one answer: more than any model writes.
pub const ANSWER_TOKENS_MAX: u32 = 1_000_000;
/// The tools that an agent can be given. `files` is `read`, `write`, `edit`, `list` and `search` together.
pub const TOOLS: [&str; 9] = [
    "bash", "python", "files", "read", "write", "edit", "list", "search", "fetch",
];

/// How an agent is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Harness {
    /// The model alone.
    Chat,
    /// Our loop of model and tools.
    #[default]
    Native,
    /// The Claude Code command line.
    ClaudeCode,
    /// Any program that reads the prompt and prints an answer.
    Command,
}

/// Whether an agent may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum AgentStatus {
    /// It may.
    #[default]
    Active,
    /// It is kept, and takes no new runs or turns.
    Archived,
}

/// What one run or turn may spend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Budget {
    /// US dollars, decimal.
    #[serde(default, deserialize_with = "decimal")]
    pub max_cost_usd: Option<String>,
    /// Tokens that models write.
    #[serde(default)]
    pub max_output_tokens: Option<u64>,
}

/// Reads a decimal number from a string or a number.
fn decimal<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Decimal {
        Text(String),
        Number(serde_json::Number),
    }
    Ok(Option::<Decimal>::deserialize(from)?.map(|given| match given {
        Decimal::Text(text) => text,
        Decimal::Number(number) => number.to_string(),
    }))
}

/// On whose files an agent's run works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WorkspaceChoice {
    /// On none but its own, which are gone with it.
    #[default]
    None,
    /// On those that the runs before left in the agent's workspace; one such run of an agent at a time.
    Agent,
}

/// What an agent is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgentDefinition {
    /// Its name, 1 to 200 characters; may be empty for one that is not saved.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The system prompt.
    pub instructions: String,
    /// How it is run.
    pub harness: Harness,
    /// The program of a `command` agent, and its arguments.
    pub command: Option<Vec<String>>,
    /// Models as `provider/model`, in order of preference.
    pub models: Vec<String>,
    /// Tools of a `native` agent: `bash`, `python`, `files`, `read`, `write`, `edit`, `list`, `search`, `fetch`. Each is a
    /// name, or `{"name": "bash", "policy": "ask"}` for one that runs only when a person says so. Agents of another harness
    /// take none.
    pub tools: Vec<AgentTool>,
    /// What programs may ask of a provider beyond the model itself: a tool that the provider runs (`web_search`,
    /// `web_fetch`, `code_execution`), `mcp_servers`, `containers`, `url_sources`, `files`. Each is a way out of the sandbox.
    pub provider_features: Vec<String>,
    /// The operator's name of the image and limits.
    pub environment: String,
    /// Where its sandbox may connect to.
    pub egress: Egress,
    /// Most model calls of one run.
    pub max_steps: u32,
    /// Most tokens of one answer of the model, with the harnesses `chat` and `native`; 8192 when it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_answer_tokens: Option<u32>,
    /// Longest duration of one attempt, such as `10m`; at least `1s`.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "10m"))]
    pub timeout: Duration,
    /// What one run may spend.
    pub budget: Budget,
    /// Whether it may be used.
    pub status: AgentStatus,
    /// The submitter's own notes.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub metadata: Map<String, Value>,
}

impl Default for AgentDefinition {
    fn default() -> Self {
        Self {
            name: String::new(),
            description: String::new(),
            instructions: String::new(),
            harness: Harness::Native,
            command: None,
            models: Vec::new(),
            tools: Vec::new(),
            provider_features: Vec::new(),
            environment: DEFAULT_ENVIRONMENT.to_owned(),
            egress: Egress::default(),
            max_steps: 50,
            max_answer_tokens: None,
            timeout: Duration::from_mins(10),
            budget: Budget::default(),
            status: AgentStatus::Active,
            metadata: Map::new(),
        }
    }
}

impl AgentDefinition {
    /// The slot that a run of it starts in.
    pub fn slot_class(&self) -> SlotClass {
        match self.harness {
            Harness::Chat | Harness::Native => SlotClass::Light,
            Harness::ClaudeCode | Harness::Command => SlotClass::Sandbox,
        }
    }

    /// Everything that is wrong with it, but for limits on `metadata`, which are the API's. Pointers are below the
    /// definition itself.
    pub fn validate(&self, saved: bool) -> Vec<InvalidField> {
        let mut faults = Vec::new();
        let mut add = |pointer: &str, detail: String| faults.push(InvalidField::new(pointer, detail));
        let length = self.name.chars().count();
        if length > 200 || (saved && length == 0) || self.name.contains('\0') {
            add("/name", "is 1 to 200 characters without NUL".to_owned());
        }
        if self.description.len() > 10_000 {
            add("/description", "is over 10000 bytes".to_owned());
        }
        if self.instructions.len() > INSTRUCTIONS_BYTES_MAX {
            add("/instructions", format!("is over {INSTRUCTIONS_BYTES_MAX} bytes"));
        }
        if !is_name(&self.environment) {
            add(
                "/environment",
                "is 1 to 63 letters, digits, dots, hyphens or underscores".to_owned(),
            );
        }
        if !(1..=STEPS_MAX).contains(&self.max_steps) {
            add("/max_steps", format!("is between 1 and {STEPS_MAX}"));
        }
        if self.timeout < TIMEOUT_MIN {
            let min = humantime::format_duration(TIMEOUT_MIN);
            add("/timeout", format!("is at least {min}"));
        }
        if self
            .max_answer_tokens
            .is_some_and(|tokens| !(1..=ANSWER_TOKENS_MAX).contains(&tokens))
        {
            add("/max_answer_tokens", format!("is between 1 and {ANSWER_TOKENS_MAX}"));
        }
        if self.budget.max_cost_usd.as_deref().is_some_and(|text| !is_amount(text)) {
            add(
                "/budget/max_cost_usd",
                "is a decimal number, such as \"1.50\"".to_owned(),
            );
        }
        faults.extend(self.harness_faults());
        // The others bring tools of their own, or none, and ask nobody: an agent that relies on these must not run.
        if self.harness != Harness::Native && !self.tools.is_empty() {
            faults.push(InvalidField::new("/tools", "needs harness native"));
        }
        faults.extend(self.instructions_fault());
        faults.extend(self.list_faults());
        faults
    }

    fn harness_faults(&self) -> Option<InvalidField> {
        let program = self.command.as_deref().unwrap_or_default();
        match self.harness {
            Harness::Command if program.first().is_none_or(String::is_empty) => Some(InvalidField::new(
                "/command",
                "is required with harness command, and begins with a program",
            )),
            Harness::Command if program.iter().any(|part| part.contains('\0')) => Some(InvalidField::new(
                "/command",
                "contains NUL, which an argument cannot hold",
            )),
            Harness::Command if json_len(&program) > ARGS_BYTES_MAX => Some(InvalidField::new(
                "/command",
                format!("is over {ARGS_BYTES_MAX} bytes of JSON"),
            )),
            Harness::Chat | Harness::Native | Harness::ClaudeCode if self.command.is_some() => {
                Some(InvalidField::new("/command", "needs harness command"))
            }
            Harness::Chat | Harness::Native | Harness::ClaudeCode if self.models.is_empty() => {
                Some(InvalidField::new("/models", "names at least one model"))
            }
            _ => None,
        }
    }

    /// Some programs have the instructions as one of their arguments.
    fn instructions_fault(&self) -> Option<InvalidField> {
        let is_argument = match self.harness {
            Harness::Chat | Harness::Native => false,
            Harness::ClaudeCode => true,
            Harness::Command => {
                let mut parts = self.command.iter().flatten();
                parts.any(|part| part.contains("{instructions}"))
            }
        };
        if !is_argument {
            return None;
        }
        let fault = if self.instructions.contains('\0') {
            "contains NUL, which an argument of its program cannot hold".to_owned()
        } else if self.instructions.len() > INSTRUCTIONS_ARGUMENT_BYTES_MAX
            || json_len(&self.instructions) > ARGS_BYTES_MAX
        {
            format!(
                "is an argument of its program, and over {INSTRUCTIONS_ARGUMENT_BYTES_MAX} bytes, or {ARGS_BYTES_MAX} of JSON"
            )
        } else {
            return None;
        };
        Some(InvalidField::new("/instructions", fault))
    }

    fn list_faults(&self) -> Vec<InvalidField> {
        let mut faults = Vec::new();
        let tools: Vec<String> = self.tools.iter().map(|tool| tool.name.clone()).collect();
        let lists = [
            ("models", &self.models),
            ("tools", &tools),
            ("provider_features", &self.provider_features),
            ("egress/allow", &self.egress.allow),
        ];
        for (index, _) in self.tools.iter().enumerate().filter(|(_, tool)| tool.deadline_is_odd()) {
            let detail = format!("is between 1s and {}", humantime::format_duration(PATIENCE_MAX));
            faults.push(InvalidField::new(format!("/tools/{index}/deadline"), detail));
        }
        for (name, list) in lists {
            if list.len() > LIST_MAX {
                faults.push(InvalidField::new(
                    format!("/{name}"),
                    format!("has more than {LIST_MAX} items"),
                ));
            }
            for (index, item) in list.iter().enumerate() {
                let fault = match name {
                    "models" if !is_model(item) => "is provider/model, such as anthropic/claude-sonnet-4-5",
                    "tools" if !TOOLS.contains(&item.as_str()) => {
                        "is one of bash, python, files, read, write, edit, list, search, fetch"
                    }
                    "provider_features" if !is_name(item) => "is a name, such as web_search",
                    "egress/allow" if item.parse::<Rule>().is_err() => {
                        "is a host with an optional port, such as *.example.org:443"
                    }
                    _ => continue,
                };
                faults.push(InvalidField::new(format!("/{name}/{index}"), fault));
            }
        }
        faults
    }
}

fn is_amount(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.len() <= 12 && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    digits(whole) && digits(fraction)
}

fn is_model(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic());
    text.len() <= 200
        && text
            .split_once('/')
            .is_some_and(|(provider, model)| is_name(provider) && plain(model))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Vec<String> {
        let agent: AgentDefinition = serde_json::from_str(json).unwrap();
        agent.validate(true).into_iter().map(|fault| fault.pointer).collect()
    }

    #[test]
    fn the_contracts_example_is_valid_and_comes_back_equal() {
        let json = r#"{"name":"n","harness":"native","command":null,"models":["anthropic/claude-x","openai/gpt"],
            "tools":["bash","python","files"],"egress":{"allow":["docs.example.com:443","*.example.org"]},
            "max_steps":50,"timeout":"10m","budget":{"max_cost_usd":null,"max_output_tokens":null},"status":"active"}"#;
        assert_eq!(faults(json), Vec::<String>::new());
        let agent: AgentDefinition = serde_json::from_str(json).unwrap();
        let again = serde_json::from_str(&serde_json::to_string(&agent).unwrap()).unwrap();
        assert_eq!(agent, again);
    }

    #[rstest::rstest]
    #[case::no_name(r#"{"models":["a/b"]}"#, "/name")]
    #[case::no_model(r#"{"name":"a"}"#, "/models")]
    #[case::odd_model(r#"{"name":"a","models":["x"]}"#, "/models/0")]
    #[case::model_in_no_ascii(r#"{"name":"a","models":["a/modèle"]}"#, "/models/0")]
    #[case::no_time(r#"{"name":"a","models":["a/b"],"timeout":"0s"}"#, "/timeout")]
    #[case::too_little_time(r#"{"name":"a","models":["a/b"],"timeout":"999ms"}"#, "/timeout")]
    #[case::odd_tool(r#"{"name":"a","models":["a/b"],"tools":["browser"]}"#, "/tools/0")]
    #[case::odd_host(
        r#"{"name":"a","models":["a/b"],"egress":{"allow":["http://x"]}}"#,
        "/egress/allow/0"
    )]
    #[case::no_program(r#"{"name":"a","harness":"command"}"#, "/command")]
    #[case::claude_tools(
        r#"{"name":"a","harness":"claude_code","models":["a/b"],"tools":["read"]}"#,
        "/tools"
    )]
    #[case::claude_asks(
        r#"{"name":"a","harness":"claude_code","models":["a/b"],"tools":[{"name":"bash","policy":"ask"}]}"#,
        "/tools"
    )]
    #[case::programs_tools(r#"{"name":"a","harness":"command","command":["x"],"tools":["bash"]}"#, "/tools")]
    #[case::chats_tools(r#"{"name":"a","harness":"chat","models":["a/b"],"tools":["bash"]}"#, "/tools")]
    #[case::steps(r#"{"name":"a","models":["a/b"],"max_steps":0}"#, "/max_steps")]
    #[case::tokens(r#"{"name":"a","models":["a/b"],"max_answer_tokens":0}"#, "/max_answer_tokens")]
    #[case::cost(
        r#"{"name":"a","models":["a/b"],"budget":{"max_cost_usd":"-1"}}"#,
        "/budget/max_cost_usd"
    )]
    fn a_fault_is_named(#[case] json: &str, #[case] pointer: &str) {
        assert_eq!(faults(json), [pointer]);
    }

    #[test]
    fn what_an_argument_cannot_hold_is_refused_where_it_is_one() {
        let faults = |harness, program: Option<&str>, instructions: &str| {
            let agent = AgentDefinition {
                harness,
                command: program.map(|part| vec!["a".to_owned(), part.to_owned()]),
                instructions: instructions.to_owned(),
                models: vec!["anthropic/x".to_owned()],
                ..AgentDefinition::default()
            };
            let faults = agent.validate(false).into_iter();
            faults.map(|fault| fault.pointer).collect::<Vec<_>>()
        };
        let longest = "x".repeat(INSTRUCTIONS_ARGUMENT_BYTES_MAX);
        for text in [format!("{longest}x"), "\u{1}".repeat(40_000), "a\0b".to_owned()] {
            for (harness, program) in [
                (Harness::ClaudeCode, None),
                (Harness::Command, Some("--be={instructions}")),
            ] {
                assert!(faults(harness, program, &longest).is_empty());
                assert_eq!(faults(harness, program, &text), ["/instructions"]);
            }
            assert!(faults(Harness::Native, None, &text).is_empty());
            assert!(faults(Harness::Command, Some("{prompt}"), &text).is_empty());
        }
        let long = "x".repeat(ARGS_BYTES_MAX);
        assert_eq!(faults(Harness::Command, Some(&long), ""), ["/command"]);
    }
}
