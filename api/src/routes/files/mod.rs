//! `/conversations/{id}/files`: the workspace of a conversation, between its turns.
//!
//! Nothing is unpacked here: an archive is read from its beginning until what is wanted has come by, and written anew
//! with one file changed, a piece at a time.

mod archive;
mod list;
mod read;
mod write;

use axum::routing::get;
use chrono::{DateTime, Utc};
use common::ids::ConversationId;
use common::store::conversations::Conversation;
use common::workspace::tar::{Entry, Kind, relative};
use common::workspace::{self, Owner, Present, Workspaces};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::routes;

use crate::auth::Caller;
use crate::extract::PathSteps;
use crate::problem::{Code, FieldError, Problem};
use crate::routes::Resource;
use crate::state::App;

/// Described apart from their routes: `OpenAPI` has no word for a path of several parts.
#[derive(OpenApi)]
#[openapi(paths(read::read, write::put, write::delete))]
struct Files;

pub(super) fn routes() -> Resource {
    let one = get(read::read).put(write::put).delete(write::delete);
    Resource::described(Files::openapi())
        .routes(routes!(list::list))
        .routes(routes!(archive::archive))
        .route("/conversations/{id}/files/{*path}", one)
}

/// A file, folder or link of a workspace.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = WorkspaceFile)]
struct FileView {
    /// Relative to the workspace.
    path: String,
    /// `file`, `folder` or `link`.
    #[schema(value_type = String)]
    kind: Kind,
    /// Bytes of its content.
    size: u64,
    /// Permissions, such as 420 (0644).
    mode: u32,
    /// When its content was changed; `null` for folders and links, whose times are not kept.
    modified_at: Option<DateTime<Utc>>,
    /// Where a link points.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// What it is, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'static str>,
}

impl FileView {
    fn new(entry: &Entry) -> Self {
        let is_file = entry.kind == Kind::File;
        Self {
            path: entry.path.clone(),
            kind: entry.kind,
            size: entry.size,
            mode: entry.mode,
            modified_at: is_file.then_some(entry.modified_at),
            target: entry.target.clone(),
            content_type: is_file.then(|| crate::download::content_type(&entry.path)),
        }
    }

    fn folder(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            kind: Kind::Folder,
            size: 0,
            mode: 0o755,
            modified_at: None,
            target: None,
            content_type: None,
        }
    }
}

/// A conversation's workspace, of the caller's tenant.
struct Found {
    conversation: Conversation,
    workspaces: Workspaces,
    present: Option<Present>,
}

async fn find(app: &App, caller: &Caller, id: ConversationId) -> Result<Found, Problem> {
    let found = app.store().conversation(caller.tenant_id(), id).await?;
    let conversation = found.ok_or_else(|| Problem::not_found("conversation"))?;
    let workspaces = Workspaces::new(app.store().clone(), app.objects().clone());
    if !workspaces.is_configured() {
        return Err(Problem::unavailable("no object store is configured (objects.url)"));
    }
    let owner = Owner::Conversation(id);
    let present = app.store().workspace(caller.tenant_id(), owner).await?;
    Ok(Found {
        conversation,
        workspaces,
        present,
    })
}

/// The path of a request, which must be one below the workspace.
fn path_of(steps: &PathSteps) -> Result<String, Problem> {
    let path = relative(steps.get("path")).map(str::to_owned);
    path.ok_or_else(|| {
        let detail = "is no path below the workspace: names apart by slashes, none of them . or ..";
        Problem::invalid(vec![FieldError {
            parameter: Some("path".to_owned()),
            detail: detail.to_owned(),
            ..FieldError::default()
        }])
    })
}

/// What a broken archive or store means for a request.
fn broken(error: workspace::Error) -> Problem {
    match error {
        workspace::Error::Store(error) => error.into(),
        workspace::Error::Objects(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a workspace cannot be read or written"
            );
            Problem::unavailable("the object store does not answer")
        }
        workspace::Error::Archive(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a workspace's archive cannot be read"
            );
            Problem::new(Code::Internal, "the workspace's archive cannot be read")
        }
    }
}
