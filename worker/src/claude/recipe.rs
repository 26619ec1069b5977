//! How the command line is started: its flags and its variables.

use common::agent::AgentDefinition;

use crate::model::ModelName;

/// Where it keeps its transcripts: in the workspace, so that they are saved with it.
pub const CONFIG_DIR: &str = "/workspace/.hothouse/claude";

/// Where it is written which session is a conversation's, when it does not have the conversation's own id.
pub const SESSIONS_DIR: &str = "/workspace/.hothouse/claude-sessions";

/// Tools that mean nothing in a turn that ends, or that would ask a provider's own servers.
const WITHOUT: &str =
    "CronCreate,CronDelete,CronList,ScheduleWakeup,EnterWorktree,ExitWorktree,SendMessage,Workflow,WebFetch";

/// Everything by which one process of the command line differs from another but whose session it is, what it is told to
/// be, and its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    flags: Vec<String>,
    env: Vec<(String, String)>,
}

/// Which session a process begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// A new one with this id.
    New(String),
    /// The one of this id, whose transcript is in the workspace.
    Known(String),
    /// A new one with this id, for whoever claims it.
    Spare(String),
}

impl Session {
    /// Its id.
    pub fn id(&self) -> &str {
        match self {
            Self::New(id) | Self::Known(id) | Self::Spare(id) => id,
        }
    }

    /// Whether it remembers what was said before.
    pub fn is_known(&self) -> bool {
        matches!(self, Self::Known(_))
    }
}

impl Recipe {
    /// What an agent's turns with this model are started with, in a place with these variables.
    pub fn new(agent: &AgentDefinition, model: &ModelName, mut env: Vec<(String, String)>) -> Self {
        let searches = agent.provider_features.iter().any(|feature| feature == "web_search");
        let more = if searches { "" } else { ",WebSearch" };
        let flags = vec![
            format!("--max-turns={}", agent.max_steps),
            format!("--model={}", model.model()),
            format!("--disallowedTools={WITHOUT}{more}"),
        ];
        env.extend(variables(model).map(|(name, value)| (name.to_owned(), value.to_owned())));
        Self { flags, env }
    }

    /// The command. Whatever comes from outside stands behind a `=`, so that it is never taken for a flag.
    pub(super) fn argv(&self, session: &Session, instructions: &str) -> Vec<String> {
        let fixed = [
            "claude",
            "--print",
            "--input-format=stream-json",
            "--output-format=stream-json",
            "--verbose",
            "--include-partial-messages",
            "--forward-subagent-text",
            // The sandbox is what keeps it: a question would have nobody to answer it.
            "--permission-mode=bypassPermissions",
            // Neither hooks nor servers that a workspace brings along.
            "--setting-sources=",
            "--strict-mcp-config",
        ];
        let mut argv: Vec<String> = fixed.map(str::to_owned).into();
        argv.extend(self.flags.iter().cloned());
        match session {
            Session::New(id) => argv.push(format!("--session-id={id}")),
            Session::Known(id) => argv.push(format!("--resume={id}")),
            Session::Spare(id) => argv.extend([format!("--session-id={id}"), "--await-claim".to_owned()]),
        }
        if !instructions.is_empty() {
            argv.push(format!("--append-system-prompt={instructions}"));
        }
        argv
    }

    /// The variables, without those of the gateway.
    pub(super) fn env(&self) -> &[(String, String)] {
        &self.env
    }
}

/// The variables that keep the program to its gateway.
fn variables(model: &ModelName) -> impl Iterator<Item = (&'static str, &str)> {
    let own = [
        ("CLAUDE_CONFIG_DIR", CONFIG_DIR),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("CLAUDE_CODE_DISABLE_AUTO_MEMORY", "1"),
        // A turn ends with its answer: what goes on behind it would be cut off.
        ("CLAUDE_CODE_DISABLE_BACKGROUND_TASKS", "1"),
        ("CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", "1"),
        // Its transcript is whole when it says its result, so that a process may be stopped there.
        ("CLAUDE_CODE_EAGER_FLUSH", "1"),
        // The gateway tries again by itself, and a call that is made anew without a stream would run its tools twice.
        ("CLAUDE_CODE_MAX_RETRIES", "2"),
        ("CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK", "1"),
        // Its runtime collects once a second whatever happens, and one that rested for longer does it first of all when it is
        // woken. What it allocates makes it collect all the same.
        ("BUN_GC_TIMER_DISABLE", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
        ("DISABLE_TELEMETRY", "1"),
    ];
    // Small errands and helpers go to the same model: the agent names no other for them.
    let models = [
        "ANTHROPIC_SMALL_FAST_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "CLAUDE_CODE_SUBAGENT_MODEL",
        "HOTHOUSE_MODEL",
    ];
    own.into_iter().chain(models.map(|name| (name, model.model())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe::new(
            &AgentDefinition::default(),
            &"anthropic/claude-x".parse().unwrap(),
            Vec::new(),
        )
    }

    #[test]
    fn what_comes_from_outside_is_no_flag() {
        let argv = recipe().argv(&Session::Known("s".to_owned()), "--dangerous --model=other");
        assert!(argv.contains(&"--append-system-prompt=--dangerous --model=other".to_owned()));
        assert!(argv.contains(&"--resume=s".to_owned()) && argv.contains(&"--model=claude-x".to_owned()));
        assert!(
            argv.iter()
                .any(|arg| arg.starts_with("--disallowedTools=") && arg.ends_with(",WebSearch"))
        );
    }

    #[test]
    fn a_spare_awaits_its_claim_and_others_do_not() {
        let has = |session| recipe().argv(&session, "").contains(&"--await-claim".to_owned());
        assert!(has(Session::Spare("s".to_owned())));
        assert!(!has(Session::New("s".to_owned())) && !has(Session::Known("s".to_owned())));
    }

    #[test]
    fn another_model_is_another_recipe() {
        let other = Recipe::new(&AgentDefinition::default(), &"anthropic/y".parse().unwrap(), Vec::new());
        assert_ne!(recipe(), other);
        assert_eq!(recipe(), recipe());
    }
}
