//! One file of a workspace.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use common::ids::ConversationId;
use common::workspace::Error;
use common::workspace::tar::{Entry, Kind, Reader};
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;

use super::{Found, broken, find, path_of};
use crate::auth::Caller;
use crate::download::Content;
use crate::extract::{PathId, PathSteps};
use crate::problem::{Code, Document, Problem};
use crate::state::App;

/// Content that is kept from the first look, so that most files need no second one.
const SMALL: u64 = 1 << 20;

/// Read a file of a conversation's workspace, or a part of it.
///
/// It is always sent as an attachment: whatever a program wrote is never shown as a page of ours.
#[utoipa::path(get, path = "/conversations/{id}/files/{path}", tag = "files",
    params(("id" = String, Path, description = "The conversation"), ("path" = String, Path, description = "Its path"),
        ("Range" = Option<String>, Header, description = "Such as `bytes=0-999`"),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag` of before: 304 when it is the same")),
    responses((status = 200, body = [u8], content_type = "application/octet-stream"),
        (status = 206, body = [u8], content_type = "application/octet-stream"), (status = 304),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 416, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn read(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    steps: PathSteps,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let path = path_of(&steps)?;
    let found = find(&app, &caller, id).await?;
    let located = locate(&found, &path).await?.ok_or_else(|| Problem::not_found("file"))?;
    if located.entry.kind != Kind::File {
        let what = if located.entry.kind == Kind::Folder {
            "a folder"
        } else {
            "a link"
        };
        return Err(Problem::new(
            Code::Conflict,
            format!("it is {what}: see the list of files"),
        ));
    }
    let content = Content {
        etag: located.etag(),
        size: located.entry.size,
        modified_at: Some(located.entry.modified_at),
        path,
    };
    let part = match content.wanted(&headers) {
        Ok(part) => part,
        Err(answer) => return Ok(*answer),
    };
    let body = if let Some(content) = located.small {
        let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(content.len());
        Body::from(content.slice(at(part.range.start)..at(part.range.end)))
    } else {
        let archive = found.workspaces.open(found.present.as_ref()).await;
        let reader = Reader::new(archive.map_err(|error| broken(error.into()))?);
        let (path, range) = (located.entry.path, part.range.clone());
        let passing = Passing {
            reader,
            path,
            skip: range.start,
            left: range.end - range.start,
            is_found: false,
        };
        Body::from_stream(futures_util::stream::try_unfold(
            Box::new(passing),
            |mut passing| async move { Ok::<_, std::io::Error>(passing.next().await?.map(|piece| (piece, passing))) },
        ))
    };
    Ok(part.response(body))
}

/// An entry that was looked at.
pub(super) struct Located {
    pub(super) entry: Entry,
    digest: [u8; 32],
    small: Option<Bytes>,
}

impl Located {
    /// Of equal content, equal.
    pub(super) fn etag(&self) -> String {
        etag(&self.digest)
    }
}

/// The tag of a content with this SHA-256.
pub(super) fn etag(digest: &[u8; 32]) -> String {
    format!("\"{}\"", hex::encode(digest.get(..16).unwrap_or_default()))
}

/// Looks for an entry, to its end; for another name of a file, the entry with its content. A folder need not have one of
/// its own.
pub(super) async fn locate(found: &Found, path: &str) -> Result<Option<Located>, Problem> {
    let located = locate_name(found, path).await?;
    match located.as_ref().and_then(|located| located.entry.name_of.as_deref()) {
        Some(first) => locate_name(found, first).await,
        None => Ok(located),
    }
}

async fn locate_name(found: &Found, path: &str) -> Result<Option<Located>, Problem> {
    let archive = found.workspaces.open(found.present.as_ref()).await;
    let mut reader = Reader::new(archive.map_err(|error| broken(error.into()))?);
    let unreadable = |error| broken(Error::Archive(error));
    while let Some(entry) = reader.next().await.map_err(unreadable)? {
        if entry.path != path {
            continue;
        }
        let mut hash = Sha256::new();
        let mut small = (entry.size <= SMALL).then(Vec::new);
        loop {
            let piece = reader.read().await.map_err(unreadable)?;
            if piece.is_empty() {
                break;
            }
            hash.update(&piece);
            if let Some(small) = &mut small {
                small.extend_from_slice(&piece);
            }
        }
        return Ok(Some(Located {
            entry,
            digest: hash.finalize().into(),
            small: small.map(Bytes::from),
        }));
    }
    Ok(None)
}

/// A part of a file, while its archive passes by.
struct Passing<R> {
    reader: Reader<R>,
    path: String,
    skip: u64,
    left: u64,
    is_found: bool,
}

impl<R: AsyncRead + Unpin> Passing<R> {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        while !self.is_found {
            let entry = self.reader.next().await?;
            let entry = entry.ok_or(std::io::ErrorKind::UnexpectedEof)?;
            self.is_found = entry.path == self.path;
        }
        loop {
            if self.left == 0 {
                return Ok(None);
            }
            let mut piece = self.reader.read().await?;
            if piece.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(piece.len());
            self.skip -= skipped as u64;
            drop(piece.split_to(skipped));
            piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= piece.len() as u64;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}
