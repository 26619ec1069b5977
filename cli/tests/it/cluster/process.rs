//! One process of a cluster: started, killed, frozen and started again by its handle, never by a name.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::eventually;

/// Lines of a process's log that are shown when its test fails.
const LAST_LINES: usize = 60;

/// See the module.
pub(crate) struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    pub(crate) fn new(name: String, program: &Path, env: Vec<(String, String)>, folder: &Path) -> Self {
        Self {
            log: folder.join(format!("{name}.log")),
            name,
            program: program.to_owned(),
            args: Vec::new(),
            env,
            child: None,
        }
    }

    pub(crate) fn with_args(mut self, args: Vec<String>) -> Self {
        self.args = args;
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One of its settings.
    pub(crate) fn setting(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(one, _)| one == name);
        found.map(|(_, value)| value.as_str()).unwrap()
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HOTHOUSE_")) {
            command.env_remove(name);
        }
        command
            .args(&self.args)
            .envs(self.env.iter().cloned())
            .env("NO_COLOR", "1");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    pub(crate) fn pid(&self) -> Pid {
        let child = self
            .child
            .as_ref()
            .unwrap_or_else(|| panic!("{} does not run", self.name));
        pid_of(child)
    }

    /// How it ended, when it ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }

    /// Gives the running process to the caller, who ends it.
    pub(super) fn take(&mut self) -> Option<Child> {
        self.child.take()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// SIGSTOP: it keeps everything and does nothing.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL, when it runs.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// SIGTERM, and waits for its end.
    pub(crate) async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.end(Signal::SIGTERM, limit).await
    }

    /// Sends a signal that ends it, and waits for its end.
    pub(super) async fn end(&mut self, signal: Signal, limit: Duration) -> ExitStatus {
        self.signal(signal);
        let mut child = self.child.take().unwrap();
        eventually(limit, "the process ends", || child.try_wait().unwrap()).await
    }

    /// Its log so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn last_words(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        let from = lines.len().saturating_sub(LAST_LINES);
        format!("--- {} ---\n{}", self.name, lines[from..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// A port that nobody listens on, below those that the system gives to outgoing connections: it stays free while its
/// owner is being killed and started again.
pub(crate) fn free_port() -> u16 {
    std::iter::repeat_with(|| rand::random_range(20_000..32_000))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .unwrap()
}
