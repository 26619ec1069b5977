//! An archive again, with one thing changed in it.

use std::io;

use ::tar::{Builder, EntryType, Header};
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncRead;

use super::super::{Error, Saving};
use super::{BLOCK, Entry, Kind, Reader, is_below, padding};
use bytes::Bytes;

/// What is changed.
#[derive(Debug)]
pub enum Change<'a, S> {
    /// A file is made, or replaced.
    Put {
        /// Its path.
        path: &'a str,
        /// Bytes of its content.
        size: u64,
        /// Its content; more or less than `size` is an error.
        content: S,
        /// When.
        at: DateTime<Utc>,
    },
    /// A file, or a folder with everything below it, is left out.
    Delete {
        /// Its path.
        path: &'a str,
    },
}

/// Why the change cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// There is a folder at the file's place.
    IsFolder,
    /// Something on the way to the file is no folder.
    NoFolder,
    /// There is nothing to delete.
    Absent,
}

/// What the new archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// Whether the file was there before.
    pub was_there: bool,
}

/// Copies an archive with one change.
///
/// # Errors
/// When either archive breaks, or the content is not what was announced.
pub async fn rewrite<R, S>(
    from: R,
    saving: &mut Saving,
    change: Change<'_, S>,
) -> Result<Result<Rewritten, Conflict>, Error>
where
    R: AsyncRead + Unpin + Send,
    S: Stream<Item = io::Result<Bytes>> + Unpin + Send,
{
    let (path, is_put) = match &change {
        Change::Put { path, .. } => (*path, true),
        Change::Delete { path } => (*path, false),
    };
    let mut reader = Reader::new(from);
    let mut done = Rewritten::default();
    while let Some(entry) = reader.next().await.map_err(Error::Archive)? {
        let is_it = entry.path == path;
        match entry.kind {
            Kind::Folder if is_it && is_put => return Ok(Err(Conflict::IsFolder)),
            _ if is_put && is_below(&entry.path, path) => return Ok(Err(Conflict::IsFolder)),
            Kind::File | Kind::Link if is_put && is_below(path, &entry.path) => return Ok(Err(Conflict::NoFolder)),
            _ => {}
        }
        if is_it || (!is_put && is_below(&entry.path, path)) {
            done.was_there = true;
            continue;
        }
        copy(&mut reader, &entry, saving).await?;
        done.bytes += entry.size;
        done.entries += 1;
    }
    match change {
        Change::Put { size, content, at, .. } => {
            put(saving, path, (size, at), content).await?;
            done.bytes += size;
            done.entries += 1;
        }
        Change::Delete { .. } if !done.was_there => return Ok(Err(Conflict::Absent)),
        Change::Delete { .. } => {}
    }
    // The end of an archive.
    saving.write(&[0; 2 * BLOCK]).await?;
    Ok(Ok(done))
}

async fn copy<R: AsyncRead + Unpin>(reader: &mut Reader<R>, entry: &Entry, saving: &mut Saving) -> Result<(), Error> {
    saving.write(&entry.raw).await?;
    let mut copied = 0;
    loop {
        let piece = reader.read().await.map_err(Error::Archive)?;
        if piece.is_empty() {
            return pad(saving, copied).await;
        }
        copied += piece.len() as u64;
        saving.write(&piece).await?;
    }
}

async fn put<S>(saving: &mut Saving, path: &str, (size, at): (u64, DateTime<Utc>), mut content: S) -> Result<(), Error>
where
    S: Stream<Item = io::Result<Bytes>> + Unpin,
{
    let head = head(path, size, at).map_err(Error::Archive)?;
    saving.write(&head).await?;
    let mut written = 0;
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(Error::Archive)?;
        written += piece.len() as u64;
        if written > size {
            break;
        }
        saving.write(&piece).await?;
    }
    if written != size {
        return Err(Error::Archive(io::ErrorKind::UnexpectedEof.into()));
    }
    pad(saving, size).await
}

async fn pad(saving: &mut Saving, size: u64) -> Result<(), Error> {
    let zeros = [0; BLOCK];
    let padding = usize::try_from(padding(size)).unwrap_or(0);
    saving.write(zeros.get(..padding).unwrap_or_default()).await
}

/// The head of a file, with that of a long name before it where it needs one.
fn head(path: &str, size: u64, at: DateTime<Utc>) -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(u64::try_from(at.timestamp()).unwrap_or(0));
    header.set_size(0);
    // Without its content, which the builder would want whole; it knows how long names are written.
    let mut builder = Builder::new(Vec::new());
    builder.append_data(&mut header, path, io::empty())?;
    let mut blocks = std::mem::take(builder.get_mut());
    let head = blocks.len().saturating_sub(BLOCK);
    let mut last: [u8; BLOCK] = blocks
        .split_off(head)
        .try_into()
        .map_err(|_short| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut header = Header::from_byte_slice(&last).clone();
    header.set_size(size);
    header.set_cksum();
    last.copy_from_slice(header.as_bytes());
    blocks.extend_from_slice(&last);
    Ok(blocks)
}
