//! An agent out of a conversation: the one that answered in it, with what people asked of it in its instructions.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use common::agent::{AgentDefinition, INSTRUCTIONS_BYTES_MAX};
use common::ids::ConversationId;
use common::message::{Message, Role};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{AgentView, write};
use crate::auth::Caller;
use crate::extract::{PathId, ValidJson};
use crate::problem::{Document, Problem};
use crate::routes::conversations::{answering, read};
use crate::routes::created;
use crate::state::App;

/// Messages that are drawn from.
const MESSAGES_MAX: u32 = 1_000;
/// Characters of one message.
const MESSAGE_CHARS: usize = 1_000;
/// Bytes of all of them.
const DRAWN_MAX: usize = 64 << 10;

/// An agent to make of a conversation.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DraftRequest {
    /// Its name; the conversation's title.
    name: Option<String>,
    /// Its instructions instead of those that are drawn from the conversation.
    instructions: Option<String>,
    /// Only answers what would be saved, to be edited.
    dry_run: bool,
}

/// Save a conversation as an agent.
///
/// It is the agent that answers in the conversation, with what was asked of it added to its instructions. With `dry_run`
/// nothing is saved: the definition is answered, to be edited and given to `POST /agents`.
#[utoipa::path(post, path = "/conversations/{id}/agent", tag = "agents", request_body = DraftRequest,
    params(("id" = String, Path, description = "The conversation")),
    responses(
        (status = 200, body = AgentDefinition),
        (status = 201, body = AgentView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn draft(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    ValidJson(request): ValidJson<DraftRequest>,
) -> Result<Response, Problem> {
    let conversation = read(&app, &caller, id).await?;
    let base = answering(&app, &caller, &conversation).await?.definition;
    let messages = app.store().messages_in_order(id, (0, 0), MESSAGES_MAX).await?;
    let messages: Vec<Message> = messages.into_iter().map(|(_, message)| message).collect();
    let title = conversation.title.trim();
    let name = request.name.unwrap_or_else(|| match title {
        "" => "From a conversation".to_owned(),
        title => title.chars().take(200).collect(),
    });
    let definition = AgentDefinition {
        name,
        description: format!("Made of the conversation {id}"),
        instructions: request
            .instructions
            .unwrap_or_else(|| drawn(&base.instructions, &messages)),
        ..base
    };
    write::check(&definition)?;
    if request.dry_run {
        return Ok(Json(definition).into_response());
    }
    let agent = app
        .store()
        .insert_agent(caller.tenant_id(), &definition, app.clock().now())
        .await?;
    Ok(created(&format!("/agents/{}", agent.id), &AgentView::from(agent)))
}

/// The instructions, and what people asked in the conversation, in their own words.
fn drawn(instructions: &str, messages: &[Message]) -> String {
    let asked = messages
        .iter()
        .filter(|message| message.role == Role::User && message.job_id.is_none());
    let mut text = instructions.trim_end().to_owned();
    let mut room = DRAWN_MAX.min(INSTRUCTIONS_BYTES_MAX.saturating_sub(text.len() + 1_000));
    let mut items = String::new();
    for message in asked {
        let said = message.text();
        let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut item: String = said.chars().take(MESSAGE_CHARS).collect();
        if item.len() < said.len() {
            item.push('…');
        }
        if item.is_empty() || item.len() + 3 > room {
            continue;
        }
        room -= item.len() + 3;
        items.extend(["- ", item.as_str(), "\n"]);
    }
    if items.is_empty() {
        return text;
    }
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    format!(
        "{text}This is what was asked of you in the conversation that you were made of. Work in the same way:\n{items}"
    )
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn what_people_asked_is_added_in_their_words() {
        let user = |text: &str| Message::user(text, DateTime::UNIX_EPOCH);
        let messages = [user("Review\nthis patch"), user(" "), user(&"x".repeat(2_000))];
        let text = drawn("Be strict.\n", &messages);
        assert!(text.starts_with("Be strict.\n\nThis is what"), "{text}");
        assert!(
            text.contains("- Review this patch\n") && text.ends_with("x…\n"),
            "{text}"
        );
        assert_eq!(drawn("Be strict.", &[]), "Be strict.");
    }
}
