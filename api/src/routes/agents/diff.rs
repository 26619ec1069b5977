//! What changed between two versions of an agent.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::agent::AgentDefinition;
use common::ids::AgentId;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::read;
use crate::auth::Caller;
use crate::extract::{PathId, PathSteps};
use crate::problem::{Document, Problem};
use crate::state::App;

/// Lines beyond which a text is shown as replaced whole: comparing costs their product.
const LINES_MAX: usize = 2_000;

/// What changed between two versions of an agent.
#[derive(Serialize, ToSchema)]
#[schema(as = AgentDiff)]
struct DiffView {
    /// The version before.
    from: u32,
    /// The version after.
    to: u32,
    /// The fields that differ, in the order of the definition.
    changes: Vec<Change>,
}

/// One field that differs.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = AgentChange)]
struct Change {
    /// The field.
    field: String,
    /// Its value before.
    #[schema(value_type = Object)]
    from: Value,
    /// Its value after.
    #[schema(value_type = Object)]
    to: Value,
    /// Of texts: their lines, those that both have with a space before them, those of before with `-`, of after with `+`.
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<Vec<String>>,
}

/// Compare two versions of an agent.
#[utoipa::path(get, path = "/agents/{id}/versions/{version}/diff/{other}", tag = "agents",
    params(("id" = String, Path, description = "The agent"), ("version" = u32, Path, description = "The version before"),
        ("other" = u32, Path, description = "The version after")),
    responses((status = 200, body = DiffView), (status = 404, body = Document, content_type = "application/problem+json")))]
pub(super) async fn diff(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<AgentId>,
    steps: PathSteps,
) -> Result<Response, Problem> {
    let absent = || Problem::not_found("version of an agent");
    let number = |name: &str| steps.get(name).parse::<u32>().map_err(|_garbage| absent());
    let (from, to) = (number("version")?, number("other")?);
    read(&app, &caller, id).await?;
    let before = app.store().agent_version(id, from).await?.ok_or_else(absent)?;
    let after = app.store().agent_version(id, to).await?.ok_or_else(absent)?;
    let changes = changes(&before.definition, &after.definition);
    Ok(Json(DiffView { from, to, changes }).into_response())
}

fn changes(before: &AgentDefinition, after: &AgentDefinition) -> Vec<Change> {
    let fields = |definition| match serde_json::to_value(definition) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (before, after) = (fields(before), fields(after));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let value = |fields: &Map<String, Value>, name: &str| fields.get(name).cloned().unwrap_or_default();
    let changed = names.into_iter().filter_map(|name| {
        let (from, to) = (value(&before, name), value(&after, name));
        let lines = from.as_str().zip(to.as_str()).map(|(from, to)| lines(from, to));
        (from != to).then(|| Change {
            field: name.clone(),
            lines,
            from,
            to,
        })
    });
    changed.collect()
}

/// The lines of two texts, those that are not common marked: the longest common subsequence.
fn lines(before: &str, after: &str) -> Vec<String> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let is_small = a.len() <= LINES_MAX && b.len() <= LINES_MAX;
    // common[i][j]: length of the longest common subsequence of a[i..] and b[j..].
    let mut common = vec![vec![0_u16; b.len() + 1]; if is_small { a.len() + 1 } else { 0 }];
    if is_small {
        for i in (0..a.len()).rev() {
            for j in (0..b.len()).rev() {
                common[i][j] = if a[i] == b[j] {
                    common[i + 1][j + 1] + 1
                } else {
                    common[i + 1][j].max(common[i][j + 1])
                };
            }
        }
    }
    let (mut i, mut j, mut marked) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if is_small && i < a.len() && j < b.len() && a[i] == b[j] {
            marked.push(format!(" {}", a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || (i < a.len() && (!is_small || common[i + 1][j] >= common[i][j + 1])) {
            marked.push(format!("-{}", a[i]));
            i += 1;
        } else {
            marked.push(format!("+{}", b[j]));
            j += 1;
        }
    }
    marked
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_named_and_texts_are_compared_line_by_line() {
        let before = AgentDefinition {
            instructions: "be brief\nbe kind\nnever lie".to_owned(),
            ..AgentDefinition::default()
        };
        let after = AgentDefinition {
            instructions: "be brief\nbe very kind\nnever lie\n".to_owned(),
            max_steps: 7,
            ..AgentDefinition::default()
        };
        let found = changes(&before, &after);
        let names: Vec<&str> = found.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(names, ["instructions", "max_steps"]);
        assert_eq!(
            found[0].lines.as_deref().unwrap(),
            [" be brief", "-be kind", "+be very kind", " never lie"]
        );
        assert_eq!((&found[1].to, &found[1].lines), (&json!(7), &None));
        assert_eq!(changes(&before, &before), []);
    }

    #[test]
    fn texts_that_are_too_long_to_compare_are_replaced_whole() {
        let long = "x\n".repeat(LINES_MAX + 1);
        let marked = lines(&long, "y");
        assert_eq!((marked.len(), marked.last().unwrap().as_str()), (LINES_MAX + 2, "+y"));
    }
}
