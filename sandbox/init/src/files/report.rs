//! Why moving files stopped.

use std::ffi::OsStr;

/// What went wrong; the text is for whoever sent or asked for the files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The request cannot be read.
    #[error("the request cannot be read: {0}")]
    Request(serde_json::Error),
    /// A glob is none.
    #[error("{glob:?} is not a glob: {reason}")]
    Glob { glob: String, reason: String },
    /// A path that leaves the folder, or is none.
    #[error("{path:?} is not a path below the folder")]
    Path { path: String },
    /// A link that points out of the folder.
    #[error("the link {path:?} points out of the folder")]
    Link { path: String },
    /// Something that is neither file, folder nor link.
    #[error("{path:?} is a {kind}, which is not allowed")]
    Kind { path: String, kind: String },
    /// Too many entries.
    #[error("more than {max} entries")]
    Entries { max: u64 },
    /// Too many bytes.
    #[error("more than {max} bytes")]
    Bytes { max: u64 },
    /// Something of a job cannot be undone.
    #[error("{what} left at {place:?}")]
    Left { what: &'static str, place: String },
    /// The archive is broken.
    #[error("the archive cannot be read: {0}")]
    Archive(std::io::Error),
    /// The system refused.
    #[error("{path:?}: {source}")]
    File { path: String, source: std::io::Error },
}

impl Error {
    /// The system refused something about `path`.
    pub(crate) fn file(path: &OsStr, source: impl Into<std::io::Error>) -> Self {
        Self::File {
            path: shown(path),
            source: source.into(),
        }
    }

    /// `path` is none below the folder.
    pub(crate) fn path(path: &OsStr) -> Self {
        Self::Path { path: shown(path) }
    }

    /// The link at `path` points out of the folder.
    pub(crate) fn link(path: &OsStr) -> Self {
        Self::Link { path: shown(path) }
    }
}

fn shown(path: &OsStr) -> String {
    path.to_string_lossy().chars().take(500).collect()
}
