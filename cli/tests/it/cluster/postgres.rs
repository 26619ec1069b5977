//! A Postgres of the cluster's own, to be stopped and killed. It writes as it should, but for the disk's own flushes: the
//! tests kill processes, never the machine.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};

use super::{Process, SOON, eventually, process, try_psql};

/// See the module.
pub(crate) struct Postgres {
    process: Process,
    port: u16,
}

impl Postgres {
    /// Makes one in the folder and starts it.
    pub(crate) async fn start(folder: &Path) -> Self {
        let (port, data) = (process::free_port(), folder.join("postgres"));
        std::fs::create_dir(&data).unwrap();
        if geteuid().is_root() {
            let user = User::from_name("postgres")
                .unwrap()
                .expect("the user postgres, whom the server's package makes");
            chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let text = data.to_str().unwrap().to_owned();
        let programs = programs();
        let made = unprivileged(&programs.join("initdb"))
            .args([
                "--username=hothouse",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .args(["--no-instructions", "--pgdata", &text])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let settings = "listen_addresses=127.0.0.1 unix_socket_directories= fsync=off max_connections=400 \
                        shared_buffers=128MB log_min_messages=fatal";
        let mut args = vec!["-D".to_owned(), text, "-p".to_owned(), port.to_string()];
        args.extend(
            settings
                .split(' ')
                .flat_map(|setting| ["-c".to_owned(), setting.to_owned()]),
        );
        let server = unprivileged(&programs.join("postgres"));
        let mut words: Vec<String> = server.get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect();
        words.extend(args);
        let program = PathBuf::from(server.get_program());
        let process = Process::new("postgres".to_owned(), &program, Vec::new(), folder).with_args(words);
        let mut this = Self { process, port };
        this.restart().await;
        this
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database, past any wire.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://hothouse@127.0.0.1:{}/{database}", self.port)
    }

    /// Starts it again and waits until it takes connections.
    pub(crate) async fn restart(&mut self) {
        self.process.start();
        let url = self.url("postgres");
        eventually(2 * SOON, "Postgres answers", || try_psql(&url, "select 1")).await;
    }

    /// Ends it: breaking its connections in good order (fast), or leaving a recovery to the next start (immediate).
    pub(crate) async fn stop(&mut self, is_immediate: bool) {
        let signal = if is_immediate { Signal::SIGQUIT } else { Signal::SIGINT };
        self.process.end(signal, 2 * SOON).await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Killed alone, it would leave its children behind for a while.
        if let Some(mut child) = self.process.take() {
            let asked = nix::sys::signal::kill(process::pid_of(&child), Signal::SIGQUIT);
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while asked.is_ok() && child.try_wait().is_ok_and(|ended| ended.is_none()) {
                if std::time::Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The newest server's programs, which distributions keep out of the path.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").is_file());
    found.max().unwrap_or_else(|| PathBuf::from("/usr/bin"))
}

/// A command that root may not run.
fn unprivileged(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"])
        .arg(program);
    command
}
