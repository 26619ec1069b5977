//! Listing a workspace.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::ids::ConversationId;
use common::workspace::tar::{Entry, Kind, Reader, is_below, relative};

use super::{FileView, broken, find};
use crate::auth::Caller;
use crate::download::{insert, names};
use crate::extract::{Params, PathId};
use crate::problem::{Document, Problem};
use crate::routes::List;
use crate::state::App;

/// List the files of a conversation's workspace, by path.
#[utoipa::path(get, path = "/conversations/{id}/files", tag = "files",
    params(("id" = String, Path, description = "The conversation"),
        ("path" = Option<String>, Query, description = "A folder; the workspace itself without it"),
        ("recursive" = Option<bool>, Query, description = "Everything below it, not only what is in it"),
        ("limit" = Option<u32>, Query, description = "1 to 200; 50"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag` of before: 304 when nothing changed")),
    responses((status = 200, body = List<FileView>), (status = 304),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    headers: HeaderMap,
    mut params: Params,
) -> Result<Response, Problem> {
    let folder = params.read_as("path", "a path below the workspace", |text| {
        if text.is_empty() {
            Some(String::new())
        } else {
            relative(text).map(str::to_owned)
        }
    });
    let folder = folder.unwrap_or_default();
    let recursive = params.parsed::<bool>("recursive", "true or false").unwrap_or(false);
    let limit = usize::try_from(params.limit()).unwrap_or(usize::MAX);
    let after = params.read_as("cursor", "a cursor that a list of ours gave", |text| {
        String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()
    });
    params.finish()?;
    let found = find(&app, &caller, id).await?;
    let etag = format!("\"v{}\"", found.present.map_or(0, |present| present.version));
    if names(&headers, &header::IF_NONE_MATCH, &etag, true) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        insert(response.headers_mut(), header::ETAG, &etag);
        return Ok(response);
    }
    let archive = found.workspaces.open(found.present.as_ref()).await;
    let mut reader = Reader::new(archive.map_err(|error| broken(error.into()))?);
    let mut page = Page::new(&folder, recursive, limit, after);
    while let Some(entry) = reader
        .next()
        .await
        .map_err(|error| broken(common::workspace::Error::Archive(error)))?
    {
        page.see(&entry);
    }
    if !page.is_there {
        return Err(Problem::not_found("folder"));
    }
    let mut response = Json(page.list()).into_response();
    insert(response.headers_mut(), header::ETAG, &etag);
    Ok(response)
}

/// One page of a folder, gathered while the archive passes by: never more of it than the page.
struct Page<'a> {
    folder: &'a str,
    recursive: bool,
    limit: usize,
    after: Option<String>,
    found: BTreeMap<String, FileView>,
    has_more: bool,
    is_there: bool,
}

impl<'a> Page<'a> {
    fn new(folder: &'a str, recursive: bool, limit: usize, after: Option<String>) -> Self {
        Self {
            folder,
            recursive,
            limit,
            after,
            found: BTreeMap::new(),
            has_more: false,
            is_there: folder.is_empty(),
        }
    }

    fn see(&mut self, entry: &Entry) {
        if entry.path == self.folder && entry.kind == Kind::Folder {
            self.is_there = true;
        }
        if !is_below(&entry.path, self.folder) {
            return;
        }
        self.is_there = true;
        let begin = if self.folder.is_empty() {
            0
        } else {
            self.folder.len() + 1
        };
        let rest = entry.path.get(begin..).unwrap_or_default();
        // Folders on the way need not have entries of their own.
        for (at, _) in rest.match_indices('/') {
            let path = entry.path.get(..begin + at).unwrap_or_default();
            self.add(path, || FileView::folder(path), false);
            if !self.recursive {
                return;
            }
        }
        self.add(&entry.path, || FileView::new(entry), true);
    }

    fn add(&mut self, path: &str, view: impl FnOnce() -> FileView, is_entry: bool) {
        if self.after.as_deref().is_some_and(|after| path <= after) || (!is_entry && self.found.contains_key(path)) {
            return;
        }
        self.found.insert(path.to_owned(), view());
        if self.found.len() > self.limit {
            self.has_more = true;
            self.found.pop_last();
        }
    }

    fn list(self) -> List<FileView> {
        let last = self.found.last_key_value().map(|(path, _)| path);
        let next_cursor = last.filter(|_| self.has_more).map(|path| URL_SAFE_NO_PAD.encode(path));
        List {
            next_cursor,
            data: self.found.into_values().collect(),
        }
    }
}
