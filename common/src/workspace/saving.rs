//! An archive that is being uploaded.

use std::fmt;
use std::io;

use bytes::BytesMut;
use sha2::{Digest, Sha256};

use super::Error;
use super::compress::Compressor;
use crate::ids::ArchiveId;
use crate::objects::Upload;

/// Compressed bytes that go to the upload together.
const TOGETHER: usize = 256 * 1024;

/// A tar stream on its way to the object store: compressed and counted as it comes.
///
/// Dropping it gives the upload up; what a process that dies leaves behind is deleted by the duty `workspaces`.
pub struct Saving {
    id: ArchiveId,
    upload: Upload,
    compressor: Compressor,
    hash: Sha256,
    waiting: BytesMut,
    archive_bytes: u64,
}

/// An archive that is stored whole and belongs to no workspace yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its id.
    pub id: ArchiveId,
    /// SHA-256 of the tar stream.
    pub digest: [u8; 32],
    /// Size of the object.
    pub archive_bytes: u64,
}

impl fmt::Debug for Saving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Saving").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Saving {
    pub(super) fn new(id: ArchiveId, upload: Upload) -> io::Result<Self> {
        Ok(Self {
            id,
            upload,
            compressor: Compressor::new()?,
            hash: Sha256::new(),
            waiting: BytesMut::new(),
            archive_bytes: 0,
        })
    }

    /// Takes another piece of the tar stream.
    ///
    /// # Errors
    /// When the object store does not take it.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.hash.update(piece);
        self.compressor.push(piece, &mut self.waiting).map_err(Error::Archive)?;
        if self.waiting.len() >= TOGETHER {
            self.send().await?;
        }
        Ok(())
    }

    /// The end of the stream. Answers nothing, and stores nothing, when it is the same as that with the digest `unless`.
    ///
    /// # Errors
    /// When the object store does not take it.
    pub async fn finish(mut self, unless: Option<&[u8; 32]>) -> Result<Option<Packed>, Error> {
        let digest: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        if unless == Some(&digest) {
            return Ok(None);
        }
        self.compressor.finish(&mut self.waiting).map_err(Error::Archive)?;
        self.send().await?;
        let Self {
            id,
            upload,
            archive_bytes,
            ..
        } = self;
        upload.finish().await?;
        Ok(Some(Packed {
            id,
            digest,
            archive_bytes,
        }))
    }

    async fn send(&mut self) -> Result<(), Error> {
        let piece = std::mem::take(&mut self.waiting).freeze();
        self.archive_bytes += piece.len() as u64;
        Ok(self.upload.write(piece).await?)
    }
}
