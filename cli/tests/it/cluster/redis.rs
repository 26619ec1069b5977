//! A Redis of the cluster's own, which keeps nothing across a restart but what it was told to save.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Process, SOON, eventually, process};

/// See the module.
pub(crate) struct Redis {
    process: Process,
    port: u16,
    saved: PathBuf,
}

impl Redis {
    pub(crate) async fn start(folder: &Path) -> Self {
        let port = process::free_port();
        let folder_text = folder.to_str().unwrap();
        let args = format!("--port {port} --bind 127.0.0.1 --appendonly no --dir {folder_text} --save");
        let args = args.split(' ').map(str::to_owned).chain([String::new()]).collect();
        let process = Process::new("redis".to_owned(), Path::new("redis-server"), Vec::new(), folder).with_args(args);
        let saved = folder.join("dump.rdb");
        let mut this = Self { process, port, saved };
        this.restart().await;
        this
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Starts it anew, empty but for what was saved, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        self.process.start();
        eventually(SOON, "Redis answers", || (self.ask("PING")? == "+PONG").then_some(())).await;
    }

    /// Saves what it holds, for a restart after [`Self::kill`]; [`Self::forget_saved`] ends that.
    pub(crate) fn save(&self) {
        assert_eq!(self.ask("SAVE").as_deref(), Some("+OK"));
    }

    /// The next restart is an empty one again.
    pub(crate) fn forget_saved(&self) {
        std::fs::remove_file(&self.saved).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    pub(crate) fn thaw(&self) {
        self.process.thaw();
    }

    /// Forgets everything.
    pub(crate) fn flush(&self) {
        assert_eq!(self.ask("FLUSHALL").as_deref(), Some("+OK"));
    }

    /// Whether jobs may be claimed: the scheduler has rebuilt it.
    pub(crate) fn is_open(&self) -> bool {
        self.ask("HGET hh:{s0}:gen open").as_deref() == Some("$1")
    }

    /// Every line of the answer to a command, through the command line client.
    pub(crate) fn lines(&self, words: &[&str]) -> Vec<String> {
        let port = self.port.to_string();
        let output = Command::new("redis-cli")
            .args(["-p", &port])
            .args(words)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// The first line of the answer to a command.
    fn ask(&self, command: &str) -> Option<String> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        connection.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    }
}
