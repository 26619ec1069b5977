//! Putting a file into a workspace, and deleting one: a new version of the whole, which no turn under way can miss.

use axum::Json;
use axum::body::{Body, HttpBody as _};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use common::ids::ConversationId;
use common::store::workspaces::{Save, Saved, Writer};
use common::workspace::tar::{Change, Conflict, Kind, Rewritten, rewrite};
use common::workspace::{Error, Owner};
use futures_util::{FutureExt, Stream, StreamExt};
use sha2::{Digest, Sha256};

use super::read::{etag, locate};
use super::{FileView, Found, broken, find, path_of};
use crate::auth::Caller;
use crate::download::{content_type, if_match, insert, names};
use crate::extract::{PathId, PathSteps};
use crate::problem::{Code, Document, FieldError, Problem};
use crate::state::App;

/// Put a file into a conversation's workspace. Folders on the way are made.
///
/// While a turn is under way the files are the turn's, and this is a conflict.
#[utoipa::path(put, path = "/conversations/{id}/files/{path}", tag = "files",
    request_body(content = [u8], content_type = "application/octet-stream"),
    params(("id" = String, Path, description = "The conversation"), ("path" = String, Path, description = "Its path"),
        ("Content-Length" = u64, Header, description = "Required"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` of what is replaced"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only when there is no such file yet")),
    responses((status = 200, body = FileView), (status = 201, body = FileView),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 412, body = Document, content_type = "application/problem+json"),
        (status = 413, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn put(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    steps: PathSteps,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let path = path_of(&steps)?;
    let size = length(&body, app.config().http.file_max)?;
    let found = find(&app, &caller, id).await?;
    between_turns(&found)?;
    if [header::IF_NONE_MATCH, header::IF_MATCH]
        .iter()
        .any(|condition| headers.contains_key(condition))
    {
        let before = locate(&found, &path).await?.map(|before| before.etag());
        if_match(&headers, before.as_deref())?;
        if before.is_some_and(|etag| names(&headers, &header::IF_NONE_MATCH, &etag, true)) {
            return Err(Problem::new(Code::PreconditionFailed, "it is what If-None-Match names"));
        }
    }
    let mut hash = Sha256::new();
    let now = app.clock().now();
    let change = Change::Put {
        path: &path,
        size,
        content: hashed(body, &mut hash),
        at: now,
    };
    let changed = change_and_save(&app, &caller, &found, change).await?;
    let view = FileView {
        kind: Kind::File,
        size,
        mode: 0o644,
        modified_at: chrono::DateTime::from_timestamp(now.timestamp(), 0),
        target: None,
        content_type: Some(content_type(&path)),
        path,
    };
    let status = if changed.was_there {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let mut response = (status, Json(view)).into_response();
    insert(response.headers_mut(), header::ETAG, &etag(&hash.finalize().into()));
    Ok(response)
}

/// Delete a file of a conversation's workspace, or a folder with everything in it.
#[utoipa::path(delete, path = "/conversations/{id}/files/{path}", tag = "files",
    params(("id" = String, Path, description = "The conversation"), ("path" = String, Path, description = "Its path"),
        ("If-Match" = Option<String>, Header, description = "The `ETag` of what is deleted")),
    responses((status = 204),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 412, body = Document, content_type = "application/problem+json")))]
pub(super) async fn delete(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    steps: PathSteps,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let path = path_of(&steps)?;
    let found = find(&app, &caller, id).await?;
    between_turns(&found)?;
    if headers.contains_key(header::IF_MATCH) {
        let before = locate(&found, &path).await?;
        if_match(&headers, before.map(|before| before.etag()).as_deref())?;
    }
    let change: Change<'_, futures_util::stream::Empty<_>> = Change::Delete { path: &path };
    change_and_save(&app, &caller, &found, change).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn between_turns(found: &Found) -> Result<(), Problem> {
    match found.conversation.active_job_id {
        None => Ok(()),
        Some(_) => Err(under_way()),
    }
}

fn under_way() -> Problem {
    Problem::new(
        Code::Conflict,
        "a turn is under way, and the files are its own until it ends",
    )
}

/// How long the body is; it is asked for beforehand because a head in the archive says it before the content.
fn length(body: &Body, max: u64) -> Result<u64, Problem> {
    let missing = || Problem::invalid(vec![FieldError::header("Content-Length", "is required")]);
    let length = body.size_hint().exact().ok_or_else(missing)?;
    if length > max {
        return Err(Problem::new(Code::TooLarge, format!("a file is at most {max} bytes")));
    }
    Ok(length)
}

/// How an error of the client's body is told from one of the archive.
const BROKE_OFF: std::io::ErrorKind = std::io::ErrorKind::ConnectionAborted;

/// The body, hashed as it passes by.
fn hashed(body: Body, hash: &mut Sha256) -> impl Stream<Item = std::io::Result<Bytes>> + Unpin + Send {
    body.into_data_stream().map(|piece| {
        let piece = piece.map_err(|_broken| BROKE_OFF)?;
        hash.update(&piece);
        Ok(piece)
    })
}

async fn change_and_save<S>(
    app: &App,
    caller: &Caller,
    found: &Found,
    change: Change<'_, S>,
) -> Result<Rewritten, Problem>
where
    S: Stream<Item = std::io::Result<Bytes>> + Unpin + Send,
{
    let now = app.clock().now();
    let is_put = matches!(change, Change::Put { .. });
    let open = || {
        let archive = async { Ok(found.workspaces.open(found.present.as_ref()).await?) };
        archive.boxed()
    };
    let mut saving = found.workspaces.begin(caller.tenant_id(), now).await.map_err(broken)?;
    let changed = rewrite(&open, &mut saving, change).await.map_err(|error| match error {
        Error::Archive(error) if error.kind() == BROKE_OFF => {
            Problem::new(Code::MalformedBody, "the body ended too early")
        }
        error => broken(error),
    })?;
    let changed = changed.map_err(|conflict| match conflict {
        Conflict::IsFolder => Problem::new(Code::Conflict, "there is a folder of this name"),
        Conflict::NoFolder => Problem::new(Code::Conflict, "something on the way to it is no folder"),
        Conflict::Absent => Problem::not_found("file"),
    })?;
    let max = app.config().http.workspace_max;
    if is_put && changed.bytes > max {
        return Err(Problem::new(
            Code::TooLarge,
            format!("a workspace holds at most {max} bytes"),
        ));
    }
    let Some(packed) = saving.finish(None).await.map_err(broken)? else {
        return Ok(changed);
    };
    let save = Save {
        tenant_id: caller.tenant_id(),
        owner: Owner::Conversation(found.conversation.id),
        expected: found.present.map_or(0, |present| present.version),
        packed,
        bytes: changed.bytes,
        entries: changed.entries,
        writer: Writer::Request,
    };
    match app.store().save_workspace(&save, now).await? {
        Saved::Committed(_) => Ok(changed),
        Saved::NotHeld => Err(under_way()),
        Saved::Stale => Err(Problem::new(
            Code::Conflict,
            "the files were changed meanwhile: try again",
        )),
    }
}
