//! A private Redis: started, taken over, ended.
//!
//! It listens on a loopback port, asks for a password, and writes its changes to disk once a second. What it holds can be
//! rebuilt from Postgres, so files that it cannot read any more are put aside, and it begins empty.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::account::Account;
use super::folder::DataFolder;
use super::server::{Program, Server};
use super::{ports, programs};

/// Reading a large append-only file takes a while.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// How long it has to write out what it holds.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A private Redis that runs.
#[derive(Debug)]
pub(crate) struct Redis {
    installation: Installation,
    server: Server,
    port: u16,
    was_running: bool,
}

/// What is needed to start it, again too.
#[derive(Debug)]
struct Installation {
    account: Account,
    binary: PathBuf,
    program: Program,
    password: String,
}

impl Redis {
    /// Takes over the one that an earlier `up` left behind, or starts it. `port` is the wanted one, else any free one.
    ///
    /// # Errors
    /// A sentence that says what is missing or broken, and what to do.
    pub(crate) async fn start(folder: &DataFolder, port: Option<u16>) -> anyhow::Result<Self> {
        let binary = programs::redis()?;
        let program = program(folder);
        let account = Account::new(&program.folder, &["redis", "nobody"]).await?;
        let installation = Installation {
            account,
            binary,
            program,
            password: folder.password("redis")?,
        };
        if let Some((server, port)) = installation.take_over(port).await {
            return Ok(Self {
                installation,
                server,
                port,
                was_running: true,
            });
        }
        let (server, port) = installation.launch(port).await?;
        Ok(Self {
            installation,
            server,
            port,
            was_running: false,
        })
    }

    /// Ends the one that an `up` left behind, if any. Returns whether there was one.
    pub(crate) async fn stop_left_over(folder: &DataFolder) -> bool {
        let program = program(folder);
        match program.left_over(&program.folder.join("redis.pid")) {
            Some(server) => {
                server.stop(STOP_GRACE).await;
                true
            }
            None => false,
        }
    }

    /// The way in.
    pub(crate) fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}/", self.installation.password, self.port)
    }

    /// Its port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether it was there already.
    pub(crate) fn was_running(&self) -> bool {
        self.was_running
    }

    /// Whether its process lives.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.server.is_alive()
    }

    /// Starts it again, on the same port, when it has died.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.server = self.installation.start_on(self.port).await?;
        Ok(())
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> bool {
        self.server.stop(STOP_GRACE).await
    }
}

impl Installation {
    /// The server that is running in our folder, when it listens where it should; one that does not is ended.
    async fn take_over(&self, wanted: Option<u16>) -> Option<(Server, u16)> {
        let server = self.program.left_over(&self.program.folder.join("redis.pid"))?;
        let settings = fs::read_to_string(self.program.folder.join("redis.conf")).unwrap_or_default();
        let port = settings
            .lines()
            .find_map(|line| line.strip_prefix("port ")?.parse().ok());
        match port {
            Some(port) if wanted.is_none_or(|wanted| wanted == port) && answers(port, self.password.clone()).await => {
                Some((server, port))
            }
            _ => {
                server.stop(STOP_GRACE).await;
                None
            }
        }
    }

    /// Starts it on the wanted port, or on a free one; somebody may take that in between, so more than once.
    async fn launch(&self, wanted: Option<u16>) -> anyhow::Result<(Server, u16)> {
        let mut tries = 0;
        loop {
            let port = ports::free(wanted)?;
            if let Some(wanted) = wanted.filter(|wanted| *wanted != port) {
                bail!("port {wanted} is in use: choose another with --redis-port");
            }
            match self.start_on(port).await {
                Err(_) if tries < 3 && wanted.is_none() && !ports::is_free(port) => tries += 1,
                // What it was holding is an index that Postgres can rebuild: better empty than not at all.
                Err(_) if tries < 3 && self.put_aside() => tries = 3,
                started => return Ok((started?, port)),
            }
        }
    }

    /// Moves its data out of the way. Returns whether there was any.
    fn put_aside(&self) -> bool {
        let data = self.program.folder.join("appendonlydir");
        let aside = self.program.folder.join("appendonlydir.unreadable");
        drop(fs::remove_dir_all(&aside));
        let is_moved = fs::rename(&data, &aside).is_ok();
        if is_moved {
            tracing::warn!(kept = %aside.display(), "Redis cannot read its data: it begins empty and is rebuilt");
        }
        is_moved
    }

    async fn start_on(&self, port: u16) -> anyhow::Result<Server> {
        self.write_settings(port)?;
        let mut command = self.account.command(&self.binary);
        command.arg(self.account.folder().join("redis.conf"));
        let password = self.password.clone();
        self.program
            .start(command, READY_LIMIT, move || answers(port, password.clone()).boxed())
            .await
    }

    /// The password stands in a file, because every user of the machine can read a command line.
    fn write_settings(&self, port: u16) -> anyhow::Result<()> {
        let path = self.program.folder.join("redis.conf");
        let folder = self.account.folder().display();
        let settings = format!(
            "# Written at every start.\nbind 127.0.0.1\nport {port}\nrequirepass {}\ndir \"{folder}\"\n\
             pidfile \"{folder}/redis.pid\"\nappendonly yes\nappendfsync everysec\nsave \"\"\n\
             maxmemory-policy noeviction\ndatabases 1\nloglevel notice\n",
            self.password
        );
        drop(fs::remove_file(&path));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(settings.as_bytes())
        };
        write().with_context(|| format!("cannot write {}: is the disk full?", path.display()))?;
        self.account.own(&path)
    }
}

fn program(folder: &DataFolder) -> Program {
    Program {
        name: "redis-server",
        title: "Redis",
        folder: folder.join("redis"),
        log: folder.join("redis/server.log"),
        stop_signal: Signal::SIGTERM,
    }
}

/// Whether a Redis with our password answers, and has read all of its data.
async fn answers(port: u16, password: String) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream
            .write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes())
            .await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer == *b"+OK\r\n+PONG\r\n")
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}
