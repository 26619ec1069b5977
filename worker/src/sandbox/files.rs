//! Files in and out of a sandbox's workspace, as tar streams that the worker never unpacks.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use hothouse_protocol::{FilesReport, Pack, Program, Run, Unpack};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::error::Error;
use super::run::{Output, Running};
use super::{Exit, Sandbox};

const READ_BYTES: usize = 32 * 1024;
// What a program of the sandbox may say about files: some ten thousand paths.
const REPORT_BYTES_MAX: usize = 8 << 20;
// What a tar stream needs for each entry beyond its content: a head, a padded end, a long name.
const ENTRY_BYTES: u64 = 8 * 512;

/// Where files go to, and how much.
#[derive(Debug, Clone)]
pub struct PutFiles {
    /// The folder below the workspace, relative; made when it is not there.
    pub dest: String,
    /// The most entries.
    pub entries_max: u64,
    /// The most bytes of all files together.
    pub bytes_max: u64,
    /// Whether symbolic links may point out of the folder, as those of a saved workspace do.
    pub outside_links: bool,
}

impl Default for PutFiles {
    fn default() -> Self {
        Self {
            dest: String::new(),
            entries_max: 100_000,
            bytes_max: 1 << 30,
            outside_links: false,
        }
    }
}

/// Which files to fetch, and how much.
#[derive(Debug, Clone)]
pub struct GetFiles {
    /// The folder below the workspace, relative; paths begin below it.
    pub root: String,
    /// Globs relative to the root: `*` stays in a folder, `**` does not.
    pub globs: Vec<String>,
    /// Whether folders and symbolic links are fetched too, as themselves.
    pub whole_tree: bool,
    /// The most entries.
    pub entries_max: u64,
    /// The most bytes of all files together.
    pub bytes_max: u64,
}

impl GetFiles {
    /// Everything below the workspace, folders and links too.
    pub fn everything(bytes_max: u64, entries_max: u64) -> Self {
        Self {
            root: String::new(),
            globs: vec!["**".to_owned()],
            whole_tree: true,
            entries_max,
            bytes_max,
        }
    }

    /// Regular files below the workspace that match one of `globs`: at most 1,000 and 64 MiB.
    pub fn matching<S: Into<String>>(globs: impl IntoIterator<Item = S>) -> Self {
        let globs = globs.into_iter().map(Into::into).collect();
        Self {
            root: String::new(),
            globs,
            whole_tree: false,
            entries_max: 1_000,
            bytes_max: 64 << 20,
        }
    }
}

/// Files out of a sandbox. Both parts were made by a process of the sandbox: the archive may hold anything.
#[derive(Debug, Clone)]
pub struct Files {
    /// The tar stream.
    pub archive: Bytes,
    /// What it is said to hold.
    pub report: FilesReport,
}

impl Sandbox {
    /// Unpacks a tar stream into the workspace, as the job's user.
    ///
    /// # Errors
    /// [`Error::Files`] when the archive is refused: an entry that is absolute, climbs out, goes through a link or is
    /// neither file, folder nor link, a cap reached, the disk full. What came before it stays. [`Error::Lost`].
    pub async fn put_files(&self, archive: impl Into<Bytes>, put: PutFiles) -> Result<FilesReport, Error> {
        let archive = archive.into();
        self.put_stream(&archive[..], put).await
    }

    /// As [`Sandbox::put_files`], from a reader.
    ///
    /// # Errors
    /// As [`Sandbox::put_files`], and [`Error::Files`] when reading fails.
    pub async fn put_stream(
        &self,
        mut archive: impl AsyncRead + Unpin + Send,
        put: PutFiles,
    ) -> Result<FilesReport, Error> {
        let PutFiles {
            dest,
            entries_max,
            bytes_max,
            outside_links,
        } = put;
        let unpack = Unpack {
            dest,
            entries_max,
            bytes_max,
            outside_links,
        };
        let mut running = Running::ask(&self.link, whole(Program::Unpack(unpack))).await?;
        let stdin = running.stdin();
        let feed = async {
            loop {
                let mut piece = BytesMut::with_capacity(READ_BYTES);
                let read = archive.read_buf(&mut piece).await;
                if read.map_err(|e| Error::Files {
                    reason: format!("the archive ended: {e}"),
                })? == 0
                {
                    return stdin.close().await;
                }
                stdin.write(piece.freeze()).await?;
            }
        };
        let collected = async {
            running.begin().await?;
            collect(running, 0).await
        };
        let (feed, collected) = (pin!(feed), pin!(collected));
        // A refusal comes before the archive has been sent, and nobody need send the rest.
        let (report, _, exit) = match select(feed, collected).await {
            Either::Left((fed, collected)) => {
                fed?;
                collected.await?
            }
            Either::Right((collected, _)) => collected?,
        };
        accept(&report, &exit)
    }

    /// Packs files of the workspace.
    ///
    /// # Errors
    /// [`Error::Files`] when a glob is none, the root is not there, or more comes than was asked for; [`Error::Lost`].
    pub async fn get_files(&self, get: GetFiles) -> Result<Files, Error> {
        let archive_max = archive_max(&get);
        let running = self.start_pack(get).await?;
        let (report, archive, exit) = collect(running, archive_max).await?;
        Ok(Files {
            archive,
            report: accept(&report, &exit)?,
        })
    }

    /// As [`Sandbox::get_files`], for archives too large for memory.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn pack(&self, get: GetFiles) -> Result<Packing, Error> {
        let left = archive_max(&get);
        let running = self.start_pack(get).await?;
        Ok(Packing {
            running,
            left,
            report: BytesMut::new(),
        })
    }

    async fn start_pack(&self, get: GetFiles) -> Result<Running, Error> {
        let GetFiles {
            root,
            globs,
            whole_tree,
            entries_max,
            bytes_max,
        } = get;
        let pack = Pack {
            root,
            globs,
            whole_tree,
            entries_max,
            bytes_max,
        };
        Running::launch(&self.link, whole(Program::Pack(pack))).await
    }
}

impl Sandbox {
    /// Kills all programs, deletes what they left and proves that nothing of them is left: no file, process, shared memory,
    /// queue or socket; timers end with their processes.
    ///
    /// # Errors
    /// [`Error::Files`] when something is: the sandbox must not be used again. [`Error::Lost`].
    pub async fn reset(&self) -> Result<(), Error> {
        if !self.about().can_reset {
            let reason = "its init cannot reset it".to_owned();
            return Err(Error::Files { reason });
        }
        let done = self.link.reset().await?;
        done.map_err(|failure| Error::Files {
            reason: failure.message,
        })
    }
}

/// A tar stream as it comes out of a sandbox.
#[derive(Debug)]
pub struct Packing {
    running: Running,
    /// Bytes of the archive that may still come.
    left: u64,
    report: BytesMut,
}

impl Packing {
    /// The next piece of the archive; none at its end, when [`Self::finish`] tells what it holds. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Files`] when more comes than was asked for.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(output) = self.running.next().await {
            match output {
                Output::Stdout(data) => {
                    self.left = self.left.checked_sub(data.len() as u64).ok_or_else(too_much)?;
                    return Ok(Some(data));
                }
                Output::Stderr(data) => self.report.extend_from_slice(&data),
                Output::Cut { .. } => {}
            }
            if self.report.len() > REPORT_BYTES_MAX {
                return Err(too_much());
            }
        }
        Ok(None)
    }

    /// What the archive holds.
    ///
    /// # Errors
    /// As [`Sandbox::get_files`].
    pub async fn finish(self) -> Result<FilesReport, Error> {
        let exit = self.running.wait().await?;
        accept(&self.report, &exit)
    }
}

fn archive_max(get: &GetFiles) -> u64 {
    let heads = get.entries_max.saturating_add(2).saturating_mul(ENTRY_BYTES);
    get.bytes_max.saturating_add(heads)
}

fn too_much() -> Error {
    Error::Files {
        reason: "more came than was asked for".to_owned(),
    }
}

fn whole(program: Program) -> Run {
    Run {
        program,
        timeout_ms: None,
        grace_ms: 0,
        head_bytes: None,
        tail_bytes: 0,
        kill_bytes: None,
    }
}

async fn collect(mut running: Running, archive_max: u64) -> Result<(Bytes, Bytes, Exit), Error> {
    let (mut report, mut archive) = (BytesMut::new(), BytesMut::new());
    while let Some(output) = running.next().await {
        match output {
            Output::Stdout(data) => archive.extend_from_slice(&data),
            Output::Stderr(data) => report.extend_from_slice(&data),
            Output::Cut { .. } => {}
        }
        if report.len() > REPORT_BYTES_MAX || archive.len() as u64 > archive_max {
            return Err(too_much());
        }
    }
    let exit = running.wait().await?;
    Ok((report.freeze(), archive.freeze(), exit))
}

fn accept(report: &[u8], exit: &Exit) -> Result<FilesReport, Error> {
    let refuse = |reason: String| Err(Error::Files { reason });
    match serde_json::from_slice::<FilesReport>(report) {
        Ok(FilesReport {
            error: Some(reason), ..
        }) => refuse(reason),
        Ok(report) if exit.is_success() => Ok(report),
        Ok(_) => refuse("it ended early".to_owned()),
        Err(_) => refuse(match exit.oom {
            hothouse_protocol::Oom::Yes => "out of memory".to_owned(),
            _ => format!("it ended with code {:?}, signal {:?}", exit.code, exit.signal),
        }),
    }
}
