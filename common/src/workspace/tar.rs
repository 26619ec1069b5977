//! Tar streams as they pass by: what is in them, one entry of them, all of them but one.
//!
//! The archives were made by a process of a sandbox, and may hold anything: nothing here becomes a path of this
//! machine, and heads that are none, or long beyond reason, end the reading.

mod path;
mod write;

use std::io;

use ::tar::{EntryType, Header};
use bytes::BytesMut;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};

pub use path::{DEPTH_MAX, PATH_MAX, is_below, relative};
pub use write::{Change, Conflict, Open, Rewritten, rewrite};

/// The size of a head, and what everything is padded to.
const BLOCK: usize = 512;

/// The longest path or target of a link.
const NAME_MAX: u64 = 16 * 1024;

/// Bytes of content that are read at once.
const PIECE: usize = 64 * 1024;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link; nobody here follows it.
    Link,
}

/// An entry without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, without a slash at the end; what is not UTF-8 in it is replaced.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes of its content, also where that is another entry's.
    pub size: u64,
    /// Permissions, as Unix writes them.
    pub mode: u32,
    /// When its content was last changed.
    pub modified_at: DateTime<Utc>,
    /// Where a link points.
    pub target: Option<String>,
    /// The file of which this is another name. It comes before, and the content is there.
    pub name_of: Option<String>,
    /// Its head as it stands in the archive, that of a long name before it included.
    raw: Vec<u8>,
}

/// Reads an archive from its beginning to its end.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Bytes of the present entry's content that were not read.
    left: u64,
    /// Zeros behind them.
    padding: u64,
    buffer: BytesMut,
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// A reader at the beginning of an archive.
    pub fn new(from: R) -> Self {
        Self {
            from,
            left: 0,
            padding: 0,
            buffer: BytesMut::new(),
        }
    }

    /// The next entry; what was not read of the present one is skipped.
    ///
    /// # Errors
    /// When the stream breaks, or is no archive.
    pub async fn next(&mut self) -> io::Result<Option<Entry>> {
        let (mut raw, mut name, mut link) = (Vec::new(), None, None);
        loop {
            self.skip().await?;
            let Some(block) = self.block().await? else {
                return Ok(None);
            };
            let header = Header::from_byte_slice(&block);
            if header.cksum()? != checksum(&block) {
                return Err(broken("a head with a wrong checksum"));
            }
            let size = header.entry_size()?;
            raw.extend_from_slice(&block);
            self.left = size;
            self.padding = padding(size);
            let kind = match header.entry_type() {
                EntryType::GNULongName => {
                    name = Some(self.long(&mut raw).await?);
                    continue;
                }
                EntryType::GNULongLink => {
                    link = Some(self.long(&mut raw).await?);
                    continue;
                }
                EntryType::Regular | EntryType::Continuous | EntryType::Link => Kind::File,
                EntryType::Directory => Kind::Folder,
                EntryType::Symlink => Kind::Link,
                _ => return Err(broken("an entry that is neither file, folder nor link")),
            };
            let path = name.unwrap_or_else(|| header.path_bytes().into_owned());
            let target = link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            let target = target.map(|target| text(&target));
            let is_name = header.entry_type() == EntryType::Link;
            let size = match (kind, header.as_gnu()) {
                (Kind::File, Some(gnu)) if is_name => gnu.real_size()?,
                (Kind::File, _) => size,
                _ => 0,
            };
            return Ok(Some(Entry {
                path: text(&path).trim_end_matches('/').to_owned(),
                kind,
                size,
                mode: header.mode()? & 0o777,
                modified_at: i64::try_from(header.mtime()?)
                    .ok()
                    .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
                    .unwrap_or_default(),
                name_of: target.clone().filter(|_| is_name),
                target: target.filter(|_| kind == Kind::Link),
                raw,
            }));
        }
    }

    /// The next piece of the present entry's content; empty at its end.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn read(&mut self) -> io::Result<bytes::Bytes> {
        let most = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        if most == 0 {
            return Ok(bytes::Bytes::new());
        }
        self.buffer.reserve(most);
        let mut limited = (&mut self.from).take(most as u64);
        let read = limited.read_buf(&mut self.buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(self.buffer.split().freeze())
    }

    async fn skip(&mut self) -> io::Result<()> {
        while !self.read().await?.is_empty() {}
        let padding = std::mem::take(&mut self.padding);
        let mut zeros = [0; BLOCK];
        if let Some(zeros) = zeros.get_mut(..usize::try_from(padding).unwrap_or(BLOCK)) {
            self.from.read_exact(zeros).await?;
        }
        Ok(())
    }

    /// The next head; none at the end, which is a block of zeros, or nothing more at all.
    async fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut read = 0;
        while read < BLOCK {
            let more = self.from.read(block.get_mut(read..).unwrap_or_default()).await?;
            match more {
                0 if read == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        Ok(None)
    }

    /// The content of a head that stands for a long name, which goes to the raw head too.
    async fn long(&mut self, raw: &mut Vec<u8>) -> io::Result<Vec<u8>> {
        if self.left > NAME_MAX {
            return Err(broken("a name without end"));
        }
        let padding = self.padding;
        let mut name = Vec::new();
        loop {
            let piece = self.read().await?;
            if piece.is_empty() {
                break;
            }
            name.extend_from_slice(&piece);
        }
        raw.extend_from_slice(&name);
        raw.resize(raw.len() + usize::try_from(padding).unwrap_or(0), 0);
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The sum of a head's bytes, its own place read as spaces.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let outside = |at: usize| !(148..156).contains(&at);
    let sum = |(at, byte): (usize, &u8)| u32::from(if outside(at) { *byte } else { b' ' });
    block.iter().enumerate().map(sum).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive as an init makes one.
    pub(super) fn archive(entries: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = Header::new_gnu();
            header.set_mode(if content.is_some() { 0o644 } else { 0o755 });
            header.set_mtime(1_000_000_000);
            header.set_size(content.map_or(0, |content| content.len() as u64));
            header.set_entry_type(if content.is_some() {
                EntryType::Regular
            } else {
                EntryType::Directory
            });
            builder
                .append_data(&mut header, path, content.unwrap_or_default())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub(super) async fn read_all(archive: &[u8]) -> io::Result<Vec<(String, Kind, Vec<u8>)>> {
        let mut reader = Reader::new(archive);
        let mut all = Vec::new();
        while let Some(entry) = reader.next().await? {
            let mut content = Vec::new();
            loop {
                let piece = reader.read().await?;
                if piece.is_empty() {
                    break;
                }
                content.extend_from_slice(&piece);
            }
            all.push((entry.path, entry.kind, content));
        }
        Ok(all)
    }

    #[tokio::test]
    async fn entries_come_in_order_with_their_content() {
        let long = format!("{}/{}", "a".repeat(120), "b".repeat(150));
        let large = vec![7; 200_001];
        let archive = archive(&[
            ("d", None),
            ("d/x", Some(b"hello")),
            (&long, Some(&large)),
            ("e", Some(b"")),
        ]);
        let all = read_all(&archive).await.unwrap();
        let names: Vec<&str> = all.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(names, ["d", "d/x", &long, "e"]);
        assert_eq!(
            (all[0].1, &all[1].2[..], &all[2].2),
            (Kind::Folder, &b"hello"[..], &large)
        );
        let mut reader = Reader::new(&archive[..]);
        let mut count = 0;
        while let Some(entry) = reader.next().await.unwrap() {
            assert_eq!(entry.modified_at.timestamp(), 1_000_000_000);
            count += 1;
        }
        assert_eq!(count, 4, "what is not read is skipped");
        assert_eq!(read_all(b"").await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_no_archive_is_refused() {
        let good = archive(&[("x", Some(&[1; 600]))]);
        for cut in [100, 513, 1_100] {
            assert!(read_all(&good[..cut]).await.is_err(), "{cut}");
        }
        let mut forged = good.clone();
        forged[0] = b'y';
        assert!(read_all(&forged).await.is_err());
        let mut device = Header::new_gnu();
        device.set_path("x").unwrap();
        device.set_entry_type(EntryType::Char);
        device.set_size(0);
        device.set_cksum();
        assert!(read_all(device.as_bytes()).await.is_err());
        let mut endless = Header::new_gnu();
        endless.set_path("x").unwrap();
        endless.set_entry_type(EntryType::GNULongName);
        endless.set_size(1 << 40);
        endless.set_cksum();
        assert!(read_all(endless.as_bytes()).await.is_err());
    }
}
