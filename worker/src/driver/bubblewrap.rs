//! The bubblewrap driver: no daemon and no image, for development and for machines without a Docker engine.
//!
//! A sandbox is `bwrap` with every namespace of its own: its root is a file system in memory with the host's `/usr`
//! read-only, a generated `/etc` and nothing else; the network is loopback alone. Init is PID 1 inside.
//!
//! It does not ask the kernel to kill the sandbox with its parent: that follows the thread that started it, and threads
//! of a runtime come and go. It does not need to: init ends with its input, which ends with the worker. Before there is an
//! init, what was begun is taken back by `outer`.
//!
//! # What is weaker than with Docker
//! - As root, init is the host's root in namespaces of its own, with three capabilities; jobs run as a user that the
//!   host does not know. As another user, init and jobs are the same user: jobs can end their own supervision, which
//!   ends the sandbox, and nothing more.
//! - The number of files in `/workspace` and `/tmp` is bounded by memory only.
//! - Where no cgroup may be made, memory, processes and processors are not limited: see [`Bubblewrap::unlimited`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Error, Found, Pipe, SandboxDriver, Spec};

mod cgroup;
mod command;
mod etc;
mod notes;
mod outer;
mod seccomp;
mod state;

use cgroup::{Cgroups, Limited};
use outer::Outer;
pub use state::{remove_left_behind, state_folder};

const NAME: &str = "bubblewrap";
const START_MAX: Duration = Duration::from_secs(10);
const DESTROY_MAX: Duration = Duration::from_secs(5);

/// What the driver works with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The static init.
    pub init: PathBuf,
    /// A folder of the driver's own, for the generated `/etc` and the system call filter.
    pub state: PathBuf,
    /// The program, by name or path.
    pub bwrap: PathBuf,
}

/// The driver.
#[derive(Debug)]
pub struct Bubblewrap {
    settings: Settings,
    cgroups: Result<Cgroups, String>,
    running: Arc<Mutex<HashMap<Uuid, Entry>>>,
    // One task a sandbox, which cleans up behind it.
    keepers: Mutex<JoinSet<()>>,
}

#[derive(Debug)]
struct Entry {
    found: Found,
    init: Pid,
    gone: watch::Receiver<bool>,
}

impl Bubblewrap {
    /// Prepares the state folder and finds out whether limits can be set.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no init at the path given, [`Error::Io`] when the folder cannot be written, or
    /// is somebody else's.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        if !settings.init.is_file() {
            let reason = format!(
                "there is no init at {}; build it with scripts/init.sh",
                settings.init.display()
            );
            return Err(Error::Unavailable { driver: NAME, reason });
        }
        state::make(&settings.state)
            .map_err(|e| io(&format!("making a folder of our own, {}", settings.state.display()), e))?;
        etc::write_folder(&settings.state, command::job_uid())?;
        seccomp::write_filter(&settings.state)?;
        let cgroups = Cgroups::find();
        match &cgroups {
            Ok(cgroups) => tracing::debug!(?cgroups, "sandboxes get cgroups of their own"),
            Err(reason) => tracing::warn!(
                reason,
                "sandboxes run without limits of memory, processes and processors"
            ),
        }
        Ok(Self {
            settings,
            cgroups,
            running: Arc::default(),
            keepers: Mutex::default(),
        })
    }

    /// Why sandboxes have no limits of memory, processes and processors; none when they have.
    pub fn unlimited(&self) -> Option<&str> {
        self.cgroups.as_ref().err().map(String::as_str)
    }

    async fn start_one(&self, spec: &Spec) -> Result<Pipe, Error> {
        let id = spec.id;
        let limited = match &self.cgroups {
            Ok(cgroups) => Some(cgroups.make(spec).map_err(|e| io("making the sandbox's cgroup", e))?),
            Err(_) => None,
        };
        let mut command = self.command(spec, limited.as_ref());
        let mut outer = Outer::spawn(&mut command, limited)
            .map_err(|e| io(&format!("starting {}", self.settings.bwrap.display()), e))?;
        let Some((writer, reader, stderr)) = outer.pipes() else {
            return Err(Error::Start {
                id,
                reason: "it has no pipes".to_owned(),
            });
        };
        let mut notes = notes::Notes::new(stderr);
        let init = match timeout(START_MAX, notes.child_pid()).await {
            Ok(Ok(pid)) => pid,
            Ok(Err(said)) => return Err(Error::Start { id, reason: said }),
            Err(_) => {
                return Err(Error::Start {
                    id,
                    reason: format!("not ready within {START_MAX:?}"),
                });
            }
        };
        self.keep(spec, init, outer, notes);
        Ok(Pipe {
            reader: Box::new(reader),
            writer: Box::new(writer),
        })
    }

    fn command(&self, spec: &Spec, limited: Option<&Limited>) -> Command {
        let mut command = command::launcher(limited, &self.settings.state);
        command.arg(&self.settings.bwrap);
        command.args(command::sandbox(&self.settings, &spec.profile, limited));
        command.args(["--", command::INIT]);
        if geteuid().is_root() {
            command.arg("as").arg(command::job_uid().to_string());
        }
        command.env_clear().env("PATH", command::PATH);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn keep(&self, spec: &Spec, init: Pid, mut outer: Outer, notes: notes::Notes) {
        let (tell, gone) = watch::channel(false);
        let found = Found {
            id: spec.id,
            worker_id: spec.worker_id,
            created_at: SystemTime::now().into(),
        };
        running(&self.running).insert(spec.id, Entry { found, init, gone });
        let (all, id) = (Arc::clone(&self.running), spec.id);
        let keeper = async move {
            let (ended, ()) = tokio::join!(outer.wait(), notes.log(id));
            tracing::debug!(sandbox = %id, ?ended, "sandbox ended");
            outer.remove().await;
            running(&all).remove(&id);
            tell.send_replace(true);
        };
        let mut keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        while keepers.try_join_next().is_some() {}
        keepers.spawn(keeper);
    }

    async fn destroy_one(&self, id: Uuid) -> Result<(), Error> {
        let entry = running(&self.running)
            .get(&id)
            .map(|entry| (entry.init, entry.gone.clone()));
        if let Some((init, mut gone)) = entry {
            // With PID 1 of its namespace every process in it dies. The number is not reused while its keeper waits.
            let killed = kill(init, Signal::SIGKILL);
            tracing::debug!(sandbox = %id, ?killed, "killing the sandbox's init");
            let ended = timeout(DESTROY_MAX, gone.wait_for(|gone| *gone)).await;
            if ended.is_err() {
                return Err(Error::Destroy {
                    id,
                    reason: format!("it still runs after {DESTROY_MAX:?}"),
                });
            }
        }
        let Ok(cgroups) = self.cgroups.clone() else {
            return Ok(());
        };
        // What was just killed may hold its cgroup for a moment.
        let removed = spawn_blocking(move || cgroups.remove(id)).await;
        removed
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|e| Error::Destroy {
                id,
                reason: e.to_string(),
            })
    }

    async fn check_now(&self) -> Result<(), Error> {
        let unavailable = |reason: String| Error::Unavailable { driver: NAME, reason };
        let mut command = command::launcher(None, &self.settings.state);
        command.arg(&self.settings.bwrap);
        command.args(command::sandbox(&self.settings, &super::Profile::default(), None));
        command
            .args(["--", "/usr/bin/true"])
            .env_clear()
            .env("PATH", command::PATH);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let cannot = |e: std::io::Error| unavailable(format!("cannot be started: {e}"));
        let outer = Outer::spawn(&mut command, None).map_err(cannot)?;
        let output = timeout(START_MAX, outer.output()).await;
        let output = output.map_err(|_elapsed| unavailable(format!("not ready within {START_MAX:?}")))?;
        let output = output.map_err(cannot)?;
        if output.status.success() {
            return Ok(());
        }
        Err(unavailable(notes::said(&output.stderr)))
    }
}

impl SandboxDriver for Bubblewrap {
    fn name(&self) -> &'static str {
        NAME
    }

    fn start<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, Result<Pipe, Error>> {
        self.start_one(spec).boxed()
    }

    fn destroy(&self, id: Uuid) -> BoxFuture<'_, Result<(), Error>> {
        self.destroy_one(id).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Found>, Error>> {
        let mut found: Vec<_> = running(&self.running)
            .values()
            .map(|entry| entry.found.clone())
            .collect();
        if let Ok(cgroups) = &self.cgroups {
            let all = cgroups.all().into_iter();
            found.extend(all.filter(|sandbox| !running(&self.running).contains_key(&sandbox.id)));
        }
        std::future::ready(Ok(found)).boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.check_now().boxed()
    }
}

fn running(all: &Mutex<HashMap<Uuid, Entry>>) -> MutexGuard<'_, HashMap<Uuid, Entry>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io(doing: &str, source: std::io::Error) -> Error {
    Error::Io {
        doing: doing.to_owned(),
        source,
    }
}

fn write(file: &Path, content: impl AsRef<[u8]>) -> Result<(), Error> {
    std::fs::write(file, content).map_err(|e| io(&format!("writing {}", file.display()), e))
}
