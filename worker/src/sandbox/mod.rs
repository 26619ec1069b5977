//! A sandbox, as the worker sees it: a pipe to an init, and what can be asked of it.
//!
//! [`Sandbox`] works over any [`Pipe`] that a driver hands out. Programs run side by side, each a [`Running`] with its
//! own input and output; files come and go as tar streams that are packed and unpacked inside; a lease that is not
//! extended ends everything.
//!
//! # Invariants
//! - Dropping a [`Sandbox`] closes its pipe, and init ends with everything in it.
//! - Dropping a [`Running`] kills what it runs.
//! - A slow reader of one program's output holds up that program only: frames of others, and control, pass it by.
//! - Everything that comes out of a sandbox is hostile: it is bounded, checked against the protocol and never unpacked.
//!
//! # Not here
//! Starting and destroying is [`crate::driver`]; which job gets which sandbox is [`crate::pool`].

mod error;
mod exit;
mod files;
mod link;
mod run;
mod spec;
mod tunnel;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hothouse_protocol::{About, GATEWAY_PORT, Greeting, PROXY_PORT, ToInit, Token, VERSION};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use self::error::{Error, Lost};
pub use self::exit::{Exit, StreamSummary};
pub use self::files::{Files, GetFiles, Packing, PutFiles};
pub use self::run::{Output, Running, Stdin};
pub use self::spec::{Input, RunSpec};
pub use self::tunnel::{Broken, Tunnel, TunnelReader, TunnelWriter, Tunnels};
pub use hothouse_protocol::{
    Channel, Failure, FailureCode, FileEntry, FilesReport, FullMount, Oom, Rested, Rlimits, TerminalSize, TextFile,
};

use self::link::Link;
use crate::driver::Pipe;

/// The user and group that programs run as, the same in every image.
pub const JOB_UID: u32 = 1000;

/// The folder of a job inside a sandbox.
pub const WORKSPACE: &str = "/workspace";

/// How long an init may be silent while a job runs. Without a renewal of its lease it would have ended itself by then.
pub const SILENT_MAX: Duration = Duration::from_secs(10);

/// How often an init is asked while a job runs.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// How a sandbox is connected.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long init may take for its hello and its first answer.
    pub hello_timeout: Duration,
    /// The user that programs run as.
    pub uid: u32,
    /// The group that programs run as.
    pub gid: u32,
    /// Whether a sandbox whose init cannot run programs under another user than its own is refused.
    pub must_have_own_uid: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hello_timeout: Duration::from_secs(10),
            uid: JOB_UID,
            gid: JOB_UID,
            must_have_own_uid: false,
        }
    }
}

/// A connected sandbox. Dropping it ends it.
#[derive(Debug)]
pub struct Sandbox {
    link: Arc<Link>,
    about: About,
    tasks: Mutex<JoinSet<()>>,
}

impl Sandbox {
    /// Greets the init behind `pipe` and checks that it is one to trust with a job.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] after [`Settings::hello_timeout`], [`Error::Lost`] when the pipe ends, [`Error::Version`] and
    /// [`Error::Unfit`] when another init answers or it finds itself badly placed.
    pub async fn connect(pipe: Pipe, settings: &Settings) -> Result<Self, Error> {
        let token = Token::new(rand::random());
        let (link, hello, tasks) = Link::open(pipe, token);
        let greeting = Greeting {
            version: VERSION,
            uid: settings.uid,
            gid: settings.gid,
            workspace: WORKSPACE.to_owned(),
            listen: vec![PROXY_PORT, GATEWAY_PORT],
        };
        let answer = async {
            link.send(ToInit::Hello(greeting)).await?;
            let about = hello.await.map_err(|_closed| link.lost())?;
            check(&about, settings)?;
            link.ping().await?;
            Ok(about)
        };
        let about = timeout(settings.hello_timeout, answer)
            .await
            .map_err(|_elapsed| Error::NoAnswer {
                to: "hello",
                after: settings.hello_timeout,
            })??;
        Ok(Self {
            link,
            about,
            tasks: Mutex::new(tasks),
        })
    }

    /// What init found around itself.
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// Starts a program.
    ///
    /// # Errors
    /// [`Error::Refused`] when it cannot be started, with the reason; [`Error::TooLarge`] when arguments and
    /// environment do not fit into a frame; [`Error::Lost`].
    pub async fn run(&self, spec: RunSpec) -> Result<Running, Error> {
        let (running, feed) = Running::start(&self.link, spec).await?;
        if let Some(feed) = feed {
            self.spawn(feed);
        }
        Ok(running)
    }

    /// The connections of programs to the ports at which init listens, until the answer is dropped; without one they are
    /// refused. None when init does not listen: it is an older one, or there is no loopback interface.
    pub fn tunnels(&self) -> Option<Tunnels> {
        (!self.about.ports.is_empty()).then(|| self.link.take_tunnels())
    }

    /// Everything is killed unless another lease comes within `run_on`; there is no limit before the first.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn extend_lease(&self, run_on: Duration) -> Result<(), Error> {
        let run_on_ms = u64::try_from(run_on.as_millis()).unwrap_or(u64::MAX);
        self.link.send(ToInit::Lease { run_on_ms }).await
    }

    /// Waits until init answers, whatever else is under way.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] after `limit`, [`Error::Lost`].
    pub async fn ping(&self, limit: Duration) -> Result<(), Error> {
        let answered = timeout(limit, self.link.ping()).await;
        answered.map_err(|_elapsed| Error::NoAnswer {
            to: "ping",
            after: limit,
        })?
    }

    /// Has init answer soon, without waiting for it.
    pub fn rouse(&self) {
        self.link.rouse();
    }

    /// How long ago init said anything.
    pub fn silent_for(&self) -> Duration {
        self.link.silent_for()
    }

    /// Asks init every now and then whether it is still there, and returns when the sandbox has ended. One that is silent
    /// for [`SILENT_MAX`] is given up: init enforces every limit of a job, so without it nothing would end.
    pub async fn watch(&self) {
        while self.is_alive() {
            tokio::select! {
                _ = self.ended() => return,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            if let Err(Error::NoAnswer { after, .. }) = self.ping(SILENT_MAX).await {
                self.link.end(Lost::Silent(after));
            }
        }
    }

    /// Kills all programs and returns when none is left.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn kill_all(&self) -> Result<(), Error> {
        self.link.kill_all().await
    }

    /// Whether the pipe still stands, as far as is known.
    pub fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    /// Waits until the pipe has ended and says why.
    pub async fn ended(&self) -> Lost {
        self.link.ended().await
    }

    /// Closes the pipe now, which ends everything in the sandbox.
    pub async fn close(self) {
        let mut tasks = self.tasks.into_inner().unwrap_or_else(PoisonError::into_inner);
        tasks.shutdown().await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

fn check(about: &About, settings: &Settings) -> Result<(), Error> {
    if about.version != VERSION {
        return Err(Error::Version { theirs: about.version });
    }
    let demands = [
        (about.is_pid1, "init is not PID 1"),
        (about.is_undumpable, "init can be read by programs of the sandbox"),
        (about.no_new_privs, "programs can gain privileges"),
        (about.can_kill, "init cannot kill the programs that it runs"),
        (
            about.has_own_uid || !settings.must_have_own_uid,
            "programs run as the same user as init",
        ),
    ];
    match demands.iter().find(|(is_met, _)| !is_met) {
        Some((_, reason)) => Err(Error::Unfit { reason }),
        None => Ok(()),
    }
}
