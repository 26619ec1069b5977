//! An archive again, with one thing changed in it.

use std::collections::HashMap;
use std::io;

use ::tar::{Builder, EntryType, Header};
use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use tokio::io::AsyncRead;

use super::super::{Error, Saving};
use super::{BLOCK, Entry, Kind, Reader, broken, is_below, padding};
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

/// An archive that can be read more than once.
pub type Open<'a, R> = &'a (dyn Fn() -> BoxFuture<'a, Result<R, Error>> + Send + Sync);

/// Copies an archive with one change.
///
/// # Errors
/// When either archive breaks, or the content is not what was announced.
pub async fn rewrite<R, S>(
    open: Open<'_, R>,
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
    let is_gone = |other: &str| other == path || (!is_put && is_below(other, path));
    let mut reader = Reader::new(open().await?);
    let mut done = Rewritten::default();
    let mut heirs: Option<Heirs> = None;
    while let Some(entry) = reader.next().await.map_err(Error::Archive)? {
        match entry.kind {
            Kind::Folder if entry.path == path && is_put => return Ok(Err(Conflict::IsFolder)),
            _ if is_put && is_below(&entry.path, path) => return Ok(Err(Conflict::IsFolder)),
            Kind::File | Kind::Link if is_put && is_below(path, &entry.path) => return Ok(Err(Conflict::NoFolder)),
            _ => {}
        }
        if is_gone(&entry.path) {
            done.was_there = true;
            if entry.kind == Kind::File && entry.name_of.is_none() {
                let heirs = match &mut heirs {
                    Some(heirs) => heirs,
                    none => none.insert(Heirs::find(open().await?, is_gone).await?),
                };
                inherit(&mut reader, &entry, heirs, (saving, &mut done)).await?;
            }
            continue;
        }
        if let Some(first) = entry.name_of.as_deref().filter(|first| is_gone(first)) {
            rename(&entry, first, heirs.as_ref(), (saving, &mut done)).await?;
            continue;
        }
        copy(&mut reader, &entry.raw, saving).await?;
        done.count(&entry);
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

impl Rewritten {
    fn count(&mut self, entry: &Entry) {
        self.bytes += if entry.name_of.is_none() { entry.size } else { 0 };
        self.entries += 1;
    }
}

/// Of files whose first name is left out, the name that has their content from then on.
struct Heirs(HashMap<String, String>);

impl Heirs {
    async fn find<R: AsyncRead + Unpin>(from: R, is_gone: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let mut reader = Reader::new(from);
        let mut heirs = HashMap::new();
        while let Some(entry) = reader.next().await.map_err(Error::Archive)? {
            if let Some(first) = entry.name_of.filter(|first| is_gone(first) && !is_gone(&entry.path)) {
                heirs.entry(first).or_insert(entry.path);
            }
        }
        Ok(Self(heirs))
    }
}

/// Writes the content of a file whose first name goes under the next one, if there is one.
async fn inherit<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    entry: &Entry,
    heirs: &Heirs,
    (saving, done): (&mut Saving, &mut Rewritten),
) -> Result<(), Error> {
    let Some(heir) = heirs.0.get(&entry.path) else {
        return Ok(());
    };
    let head = head(heir, entry.size, (entry.mode, entry.modified_at)).map_err(Error::Archive)?;
    copy(reader, &head, saving).await?;
    done.count(entry);
    Ok(())
}

/// Writes another name of a file whose first name is gone.
async fn rename(
    entry: &Entry,
    first: &str,
    heirs: Option<&Heirs>,
    (saving, done): (&mut Saving, &mut Rewritten),
) -> Result<(), Error> {
    let heir = heirs.and_then(|heirs| heirs.0.get(first));
    let heir = heir.ok_or_else(|| Error::Archive(broken("another name of a file that did not come before")))?;
    if *heir != entry.path {
        saving.write(&name_of(entry, heir).map_err(Error::Archive)?).await?;
        done.count(entry);
    }
    Ok(())
}

async fn copy<R: AsyncRead + Unpin>(reader: &mut Reader<R>, head: &[u8], saving: &mut Saving) -> Result<(), Error> {
    saving.write(head).await?;
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
    let head = head(path, size, (0o644, at)).map_err(Error::Archive)?;
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
fn head(path: &str, size: u64, (mode, at): (u32, DateTime<Utc>)) -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
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

/// The head of another name of a file.
fn name_of(entry: &Entry, first: &str) -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Link);
    header.set_mode(entry.mode);
    header.set_mtime(u64::try_from(entry.modified_at.timestamp()).unwrap_or(0));
    header.set_size(0);
    // As init writes it.
    let is = Header::from_byte_slice(entry.raw.last_chunk::<BLOCK>().unwrap_or(&[0; BLOCK])).as_gnu();
    if let (Some(is), Some(gnu)) = (is, header.as_gnu_mut()) {
        gnu.realsize = is.realsize;
    }
    let mut builder = Builder::new(Vec::new());
    builder.append_link(&mut header, &entry.path, first)?;
    Ok(std::mem::take(builder.get_mut()))
}
