//! The tools of an agent, and which of them need a person's permission.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::AgentDefinition;

/// How long a person may take to answer when the agent says nothing.
pub const PATIENCE: Duration = Duration::from_hours(24);

/// How long a person may take at most.
pub const PATIENCE_MAX: Duration = Duration::from_hours(24 * 7);

/// Whether a tool runs when the model calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ToolPolicy {
    /// It does.
    #[default]
    Allow,
    /// A person is asked first.
    Ask,
}

/// One tool of an agent: written as its name alone, unless there is more to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentTool {
    /// The tool.
    pub name: String,
    /// Whether it runs when it is called.
    pub policy: ToolPolicy,
    /// How long a person may take to answer; then the answer is no. [`PATIENCE`] when none.
    pub deadline: Option<Duration>,
}

/// The long form of a tool.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = AgentToolEntry))]
struct Long {
    /// The tool.
    name: String,
    /// `allow` or `ask`.
    #[serde(default)]
    policy: ToolPolicy,
    /// How long a person may take to answer, such as `1h`; `24h`, at most `7d`.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "1h"))]
    deadline: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = AgentTool))]
enum Written {
    /// Its name.
    Name(String),
    /// Its name, and whether a person is asked.
    Long(Long),
}

impl AgentTool {
    /// A tool that runs when it is called.
    pub fn allowed(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            policy: ToolPolicy::Allow,
            deadline: None,
        }
    }

    pub(super) fn deadline_is_odd(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| !(Duration::from_secs(1)..=PATIENCE_MAX).contains(&deadline))
    }

    /// The names under which a model may call it.
    fn called(&self) -> Vec<&str> {
        match self.name.as_str() {
            "files" => vec!["read", "write", "edit", "list", "search"],
            name => vec![name],
        }
    }
}

impl AgentDefinition {
    /// The tools of which a person is asked, as the model calls them, and how long that may take.
    pub fn asks(&self) -> HashMap<String, Duration> {
        let asking = self.tools.iter().filter(|tool| tool.policy == ToolPolicy::Ask);
        asking
            .flat_map(|tool| {
                let patience = tool.deadline.unwrap_or(PATIENCE);
                tool.called().into_iter().map(move |name| (name.to_owned(), patience))
            })
            .collect()
    }
}

impl AsRef<str> for AgentTool {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl From<&str> for AgentTool {
    fn from(name: &str) -> Self {
        Self::allowed(name)
    }
}

impl Serialize for AgentTool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.policy == ToolPolicy::Allow && self.deadline.is_none() {
            return serializer.serialize_str(&self.name);
        }
        let long = Long {
            name: self.name.clone(),
            policy: self.policy,
            deadline: self.deadline,
        };
        long.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AgentTool {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(from)? {
            Written::Name(name) => Self::allowed(name),
            Written::Long(Long { name, policy, deadline }) => Self { name, policy, deadline },
        })
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for AgentTool {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        Written::schema()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for AgentTool {
    fn name() -> std::borrow::Cow<'static, str> {
        "AgentTool".into()
    }

    fn schemas(schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
        schemas.push(("AgentToolEntry".to_owned(), <Long as utoipa::PartialSchema>::schema()));
        <Long as utoipa::ToSchema>::schemas(schemas);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tool_is_a_name_unless_there_is_more_to_say() {
        let wire = json!(["bash", {"name": "python", "policy": "ask"},
            {"name": "files", "policy": "ask", "deadline": "1h"}]);
        let tools: Vec<AgentTool> = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(tools[0], AgentTool::from("bash"));
        assert_eq!(serde_json::to_value(&tools).unwrap(), wire);
        let agent = AgentDefinition {
            tools,
            ..AgentDefinition::default()
        };
        let asks = agent.asks();
        assert_eq!(asks.get("python"), Some(&PATIENCE));
        assert_eq!(asks.get("edit"), Some(&Duration::from_hours(1)));
        assert_eq!(asks.get("bash"), None);
        assert!(serde_json::from_value::<AgentTool>(json!({"name": "bash", "surprise": 1})).is_err());
    }
}
