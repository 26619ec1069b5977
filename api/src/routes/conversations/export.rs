//! A whole conversation as a file: JSON for programs, Markdown for people. It is written page by page.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use common::ids::ConversationId;
use common::message::{Message, Part, Role};
use common::store::conversations::Conversation;
use common::store::{self, Store};
use futures_util::{Stream, StreamExt, stream};
use serde_json::json;

use super::{ConversationView, read};
use crate::auth::Caller;
use crate::extract::{Params, PathId};
use crate::problem::{Document, Problem};
use crate::state::App;

/// Messages that are read at once.
const PAGE: u32 = 100;

/// What it is exported as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    Markdown,
}

/// Export a conversation.
///
/// As JSON: `{"conversation": …, "messages": […]}`, in the order of the turns.
#[utoipa::path(get, path = "/conversations/{id}/export", tag = "conversations",
    params(("id" = String, Path, description = "The conversation"),
        ("format" = Option<String>, Query, description = "`json` or `markdown`; `json`")),
    responses(
        (status = 200, description = "The file", content((String = "application/json"), (String = "text/markdown"))),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn export(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let format = params.read_as("format", "json or markdown", |text| match text {
        "json" => Some(Format::Json),
        "markdown" => Some(Format::Markdown),
        _ => None,
    });
    let format = format.unwrap_or(Format::Json);
    params.finish()?;
    let conversation = read(&app, &caller, id).await?;
    let (kind, ending) = match format {
        Format::Json => ("application/json", "json"),
        Format::Markdown => ("text/markdown; charset=utf-8", "md"),
    };
    let name = format!("attachment; filename=\"conversation-{id}.{ending}\"");
    let messages = messages(app.store().clone(), id);
    let body = match format {
        Format::Json => Body::from_stream(as_json(conversation, messages)),
        Format::Markdown => Body::from_stream(as_markdown(&conversation.title, messages)),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

type Page = Result<Vec<Message>, store::Error>;

/// The messages, page by page.
fn messages(store: Store, id: ConversationId) -> impl Stream<Item = Page> + Send {
    stream::unfold(Some((store, (0, 0))), move |at| async move {
        let (store, after) = at?;
        match store.messages_in_order(id, after, PAGE).await {
            Ok(page) => {
                let place = page.last().map(|(place, _)| *place)?;
                let messages = page.into_iter().map(|(_, message)| message).collect();
                Some((Ok(messages), Some((store, place))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

fn as_json(
    conversation: Conversation,
    pages: impl Stream<Item = Page> + Send,
) -> impl Stream<Item = Result<Bytes, store::Error>> + Send {
    let head = json!(ConversationView::from(conversation));
    let head = stream::iter([Ok(Bytes::from(format!("{{\"conversation\":{head},\"messages\":[")))]);
    let mut is_first = true;
    let body = pages.map(move |page| {
        let mut text = String::new();
        for message in page? {
            if !std::mem::take(&mut is_first) {
                text.push(',');
            }
            text.push('\n');
            text.push_str(&json!(message).to_string());
        }
        Ok(Bytes::from(text))
    });
    head.chain(body)
        .chain(stream::iter([Ok(Bytes::from_static(b"\n]}\n"))]))
}

fn as_markdown<S: Stream<Item = Page> + Send>(
    title: &str,
    pages: S,
) -> impl Stream<Item = Result<Bytes, store::Error>> + Send + use<S> {
    let title = match title.trim() {
        "" => "Conversation",
        title => title,
    };
    let head = format!("# {}\n\n", title.replace(['\n', '\r'], " "));
    let body = pages.map(|page| Ok(Bytes::from(page?.iter().map(markdown).collect::<String>())));
    stream::iter([Ok(Bytes::from(head))]).chain(body)
}

/// A message as Markdown. Results of tools stand behind the answer that called them, without a heading of their own.
fn markdown(message: &Message) -> String {
    let is_result = |part: &Part| matches!(part, Part::ToolResult { .. });
    let at = message.created_at.format("%Y-%m-%d %H:%M UTC");
    let mut text = match message.role {
        Role::User if message.parts.iter().all(is_result) => String::new(),
        Role::User => format!("## User\n\n*{at}*\n\n"),
        Role::Assistant => format!("## Assistant\n\n*{at}*\n\n"),
    };
    for block in message.parts.iter().map(block).filter(|block| !block.is_empty()) {
        text.push_str(&block);
        text.push_str("\n\n");
    }
    text
}

fn block(part: &Part) -> String {
    match part {
        Part::Text { text: said } => said.trim_end().to_owned(),
        Part::Reasoning { text: said, .. } => {
            let quoted: Vec<String> = said.trim().lines().map(|line| format!("> {line}")).collect();
            quoted.join("\n")
        }
        Part::ToolCall { name, input, .. } => {
            let input = serde_json::to_string_pretty(input).unwrap_or_default();
            format!("**Calls `{name}`**\n\n{}", fenced("json", &input))
        }
        Part::ToolResult { is_error, output, .. } => {
            let what = if *is_error { "Failed" } else { "Result" };
            format!("**{what}**\n\n{}", fenced("", output))
        }
        Part::File { path, .. } => format!("[file: {path}]"),
        Part::Status { text: said } => format!("*{said}*"),
    }
}

/// A block whose fence is longer than any in it.
fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn every_part_reads_well_in_markdown() {
        let call = Part::ToolCall {
            id: "c".to_owned(),
            name: "bash".to_owned(),
            input: json!({"command": "ls"}),
        };
        let result = Part::ToolResult {
            tool_call_id: "c".to_owned(),
            is_error: false,
            output: "```\nx\n```".to_owned(),
        };
        let said = markdown(&Message::new(
            Role::Assistant,
            vec![Part::text("Look:"), call],
            DateTime::UNIX_EPOCH,
        ));
        assert!(
            said.starts_with("## Assistant\n\n*1970-01-01 00:00 UTC*\n\nLook:\n\n**Calls `bash`**"),
            "{said}"
        );
        let done = markdown(&Message::new(Role::User, vec![result], DateTime::UNIX_EPOCH));
        assert_eq!(done, "**Result**\n\n````\n```\nx\n```\n````\n\n");
    }
}
