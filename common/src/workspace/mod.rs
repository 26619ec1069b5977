//! Workspaces: the files of a conversation or an agent, between the sandboxes that they are used in.
//!
//! A workspace is one compressed archive in the object store, and a row that says which one and what its version is. A
//! writer uploads a new archive and then commits it: [`Store::save_workspace`] refuses one that did not begin with the
//! present version, or whose attempt is not held any more, so a stale copy never wins. The archive is written down
//! before it is uploaded, so nothing is lost sight of when a process dies in the middle.
//!
//! # Invariants
//! - An archive is never changed; a new version is a new one.
//! - Archives are streams of tar entries. Nobody outside of a sandbox unpacks one: [`tar`] reads and rewrites them as
//!   they pass by, in a few hundred kilobytes of memory whatever their size.
//!
//! # Not here
//! Packing and unpacking is the init's; who may write when is [`crate::store::workspaces`].

mod compress;
mod saving;
pub mod tar;

use std::io;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{Stream, TryStreamExt as _};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

pub use saving::{Packed, Saving};

use crate::ids::{AgentId, ArchiveId, ConversationId, TenantId};
use crate::objects::{self, Objects};
use crate::store::{self, Store};

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A conversation's.
    Conversation(ConversationId),
    /// A saved agent's, for its runs that ask for it.
    Agent(AgentId),
}

impl Owner {
    /// The id of the workspace.
    pub fn id(self) -> uuid::Uuid {
        match self {
            Self::Conversation(id) => id.uuid(),
            Self::Agent(id) => id.uuid(),
        }
    }

    /// What it is, as it is written in SQL.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Conversation(_) => "conversation",
            Self::Agent(_) => "agent",
        }
    }
}

/// The present version of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Present {
    /// From 1.
    pub version: u64,
    /// Where its files are.
    pub archive_id: ArchiveId,
    /// SHA-256 of the tar stream.
    pub digest: [u8; 32],
    /// Size of all files together.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: u64,
    /// When it was committed.
    pub updated_at: DateTime<Utc>,
}

/// Why files could not be kept or fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres.
    #[error("the workspace's row cannot be read or written")]
    Store(#[from] store::Error),
    /// The object store.
    #[error("the workspace's archive cannot be read or written")]
    Objects(#[from] objects::Error),
    /// An archive is not what it should be, or a stream broke.
    #[error("the workspace's archive cannot be read")]
    Archive(#[source] io::Error),
}

impl Error {
    /// Whether the same may work later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.class() == store::Class::Transient,
            Self::Objects(error) => matches!(error, objects::Error::Store(_)),
            Self::Archive(_) => false,
        }
    }
}

/// Where workspaces are kept. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workspaces {
    store: Store,
    objects: Objects,
}

impl Workspaces {
    /// Over a store and a place for objects.
    pub fn new(store: Store, objects: Objects) -> Self {
        Self { store, objects }
    }

    /// Whether there is a place for archives at all.
    pub fn is_configured(&self) -> bool {
        self.objects.is_configured()
    }

    /// The tar stream of an archive.
    ///
    /// # Errors
    /// When the object is not there or its store does not answer; later failures come through the stream.
    pub async fn stream(
        &self,
        id: ArchiveId,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, objects::Error> {
        let compressed = self.objects.stream(&archive_key(id)).await?;
        Ok(compress::expanded(compressed.map_err(io::Error::other)))
    }

    /// The same to read from; an empty archive for no version at all.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn open(
        &self,
        present: Option<&Present>,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, objects::Error> {
        let stream = match present {
            Some(present) => futures_util::future::Either::Left(self.stream(present.archive_id).await?),
            None => futures_util::future::Either::Right(futures_util::stream::empty()),
        };
        Ok(StreamReader::new(Box::pin(stream)))
    }

    /// Begins an archive of a tenant.
    ///
    /// # Errors
    /// When Postgres is away, or there is no place for objects.
    pub async fn begin(&self, tenant_id: TenantId, now: DateTime<Utc>) -> Result<Saving, Error> {
        let id = ArchiveId::new();
        let upload = self.objects.upload(&archive_key(id))?;
        self.store.begin_archive(tenant_id, id, now).await?;
        Saving::new(id, upload).map_err(Error::Archive)
    }
}

/// The key of an archive's object.
pub fn archive_key(id: ArchiveId) -> String {
    format!("workspaces/{id}")
}
