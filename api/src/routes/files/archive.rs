//! A whole workspace as an archive that every tool reads.

use std::io::Write as _;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use common::ids::ConversationId;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{broken, find};
use crate::auth::Caller;
use crate::download::{attach, insert, names};
use crate::extract::{Params, PathId};
use crate::problem::{Document, Problem};
use crate::state::App;

/// Bytes that are compressed at once.
const PIECE: usize = 64 * 1024;

/// Download the files of a conversation's workspace as one `.tar.gz`.
#[utoipa::path(get, path = "/conversations/{id}/files.tar.gz", tag = "files",
    params(("id" = String, Path, description = "The conversation"),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag` of before: 304 when nothing changed")),
    responses((status = 200, body = [u8], content_type = "application/gzip"), (status = 304),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 503, body = Document, content_type = "application/problem+json")))]
pub(super) async fn archive(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, Problem> {
    params.finish()?;
    let found = find(&app, &caller, id).await?;
    let etag = format!("\"v{}\"", found.present.map_or(0, |present| present.version));
    let mut response = if names(&headers, &header::IF_NONE_MATCH, &etag, true) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let archive = found.workspaces.open(found.present.as_ref()).await;
        let archive = archive.map_err(|error| broken(error.into()))?;
        // A workspace without files is an archive without entries: two blocks of zeros.
        let end: &'static [u8] = if found.present.is_some() { &[] } else { &[0; 1024] };
        let mut response = Body::from_stream(compressed(archive.chain(end))).into_response();
        let headers = response.headers_mut();
        insert(headers, header::CONTENT_TYPE, "application/gzip");
        attach(headers, "files.tar.gz");
        response
    };
    insert(response.headers_mut(), header::ETAG, &etag);
    insert(response.headers_mut(), header::CACHE_CONTROL, "private, no-cache");
    Ok(response)
}

fn compressed(from: impl AsyncRead + Send + Unpin + 'static) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let begun = (from, Some(GzEncoder::new(Vec::new(), Compression::fast())));
    let pieces = futures_util::stream::try_unfold(begun, |(mut from, encoder)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        let mut piece = BytesMut::with_capacity(PIECE);
        if from.read_buf(&mut piece).await? == 0 {
            return Ok(Some((Bytes::from(encoder.finish()?), (from, None))));
        }
        encoder.write_all(&piece)?;
        let made = Bytes::from(std::mem::take(encoder.get_mut()));
        Ok(Some((made, (from, Some(encoder)))))
    });
    // What waits in the compressor is no piece.
    Box::pin(pieces.filter(|piece| std::future::ready(!matches!(piece, Ok(piece) if piece.is_empty()))))
}
