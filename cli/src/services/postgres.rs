//! A private Postgres: made, started, taken over, ended.
//!
//! It listens on a loopback port and asks for a password. Jobs are its truth, so it flushes to disk as it does by
//! default. Hothouse itself is not its superuser.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::FutureExt as _;
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::account::Account;
use super::folder::DataFolder;
use super::server::{Program, Server};
use super::{ports, programs};

/// Replaying the log of a database that was killed takes a while.
const READY_LIMIT: Duration = Duration::from_mins(2);
/// How long connections have to end before the server is killed; its log is replayed at the next start then.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// Who owns the cluster.
const ADMIN: &str = "postgres";
/// Hothouse's role, which owns the database of the same name and nothing else.
const ROLE: &str = "hothouse";

/// A private Postgres that runs.
#[derive(Debug)]
pub(crate) struct Postgres {
    installation: Installation,
    server: Server,
    port: u16,
    password: String,
    was_running: bool,
}

/// What is needed to start it, again too.
#[derive(Debug)]
struct Installation {
    account: Account,
    bin: PathBuf,
    program: Program,
}

impl Postgres {
    /// Takes over the one that an earlier `up` left behind, or starts it, and makes the database where it is missing.
    /// `port` is the wanted one, else any free one.
    ///
    /// # Errors
    /// A sentence that says what is missing or broken, and what to do.
    pub(crate) async fn start(folder: &DataFolder, port: Option<u16>) -> anyhow::Result<Self> {
        let program = program(folder);
        let bin = programs_for(&program.folder)?;
        let account = Account::new(&folder.join("postgres"), &["postgres", "nobody"]).await?;
        let installation = Installation { account, bin, program };
        let admin_password = folder.password("postgres-admin")?;
        let password = folder.password("postgres")?;
        if !installation.program.folder.join("PG_VERSION").exists() {
            installation.initialize(&admin_password).await?;
        }
        let taken_over = installation.take_over(port).await;
        let was_running = taken_over.is_some();
        let (server, port) = match taken_over {
            Some(running) => running,
            None => installation.launch(port).await?,
        };
        let postgres = Self {
            installation,
            server,
            port,
            password,
            was_running,
        };
        postgres.make_database(&admin_password).await?;
        Ok(postgres)
    }

    /// Ends the one that an `up` left behind, if any. Returns whether there was one.
    pub(crate) async fn stop_left_over(folder: &DataFolder) -> bool {
        let program = program(folder);
        match program.left_over(&program.folder.join("postmaster.pid")) {
            Some(server) => {
                server.stop(STOP_GRACE).await;
                true
            }
            None => false,
        }
    }

    /// Hothouse's own way in.
    pub(crate) fn url(&self) -> String {
        format!("postgres://{ROLE}:{}@127.0.0.1:{}/{ROLE}", self.password, self.port)
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

    /// Makes the role and its database, and sets the role's password: it may have been lost with its file.
    async fn make_database(&self, admin_password: &str) -> anyhow::Result<()> {
        // The passwords are hexadecimal digits, so quoting cannot go wrong.
        let script = format!(
            "select 'create role {ROLE} login' where not exists (select from pg_roles where rolname = '{ROLE}') \\gexec\n\
             alter role {ROLE} password '{}';\n\
             select 'create database {ROLE} owner {ROLE}' \
               where not exists (select from pg_database where datname = '{ROLE}') \\gexec\n",
            self.password
        );
        let mut child = Command::new(self.installation.bin.join("psql"))
            .args([
                "-qAtX",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-U",
                ADMIN,
                "-d",
                "postgres",
                "-p",
            ])
            .arg(self.port.to_string())
            .env("PGPASSWORD", admin_password)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run psql")?;
        let mut input = child.stdin.take().context("psql without its input")?;
        input.write_all(script.as_bytes()).await?;
        drop(input);
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            let data = self.installation.program.folder.display();
            bail!(
                "the database in {data} refuses its administrator: {}; put secrets/postgres-admin back, or move {data} \
                 away to begin with an empty database",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

impl Installation {
    /// Makes the cluster beside its place and moves it there, so that what was interrupted is never taken for one.
    async fn initialize(&self, admin_password: &str) -> anyhow::Result<()> {
        let data = &self.program.folder;
        if data.exists() {
            bail!(
                "{} is no Postgres database any more (it has no PG_VERSION): restore it from a backup, or move it away \
                 to begin with an empty database",
                data.display()
            );
        }
        let fresh = data.with_file_name("data.new");
        drop(std::fs::remove_dir_all(&fresh));
        let password_file = data.with_file_name("password");
        self.give(&password_file, admin_password)?;
        let output = self
            .account
            .command(&self.bin.join("initdb"))
            .arg("--pgdata")
            .arg(self.account.folder().join("data.new"))
            .arg("--pwfile")
            .arg(self.account.folder().join("password"))
            .args([
                "--username",
                ADMIN,
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ])
            .args(["--data-checksums", "--no-instructions"])
            .output()
            .await
            .context("cannot run initdb");
        drop(std::fs::remove_file(&password_file));
        let output = output?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).replace('\n', " | ");
            bail!(
                "Postgres cannot make its database in {}: {}",
                data.display(),
                text.trim_end_matches([' ', '|'])
            );
        }
        std::fs::rename(&fresh, data).with_context(|| format!("cannot make {}", data.display()))
    }

    /// Writes a file that the server's account alone can read.
    fn give(&self, file: &Path, content: &str) -> anyhow::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        drop(std::fs::remove_file(file));
        let mut open = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        open.write_all(content.as_bytes())?;
        self.account.own(file)
    }

    /// The server that is running in our folder, when it listens where it should; one that does not is ended.
    async fn take_over(&self, wanted: Option<u16>) -> Option<(Server, u16)> {
        let pid_file = self.program.folder.join("postmaster.pid");
        let Some(server) = self.program.left_over(&pid_file) else {
            // The kernel may have given its pid to another program, which Postgres would take for itself.
            drop(std::fs::remove_file(&pid_file));
            return None;
        };
        let port = std::fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.lines().nth(3)?.trim().parse().ok());
        match port {
            Some(port)
                if wanted.is_none_or(|wanted| wanted == port) && answers(self.bin.join("pg_isready"), port).await =>
            {
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
                bail!("port {wanted} is in use: choose another with --postgres-port");
            }
            match self.start_on(port).await {
                Err(_) if tries < 3 && wanted.is_none() && !ports::is_free(port) => tries += 1,
                started => return Ok((started?, port)),
            }
        }
    }

    async fn start_on(&self, port: u16) -> anyhow::Result<Server> {
        let mut command = self.account.command(&self.bin.join("postgres"));
        command.arg("-D").arg(self.account.folder().join("data"));
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "shared_buffers=256MB",
            "max_wal_size=2GB",
            "checkpoint_timeout=15min",
            // Compiling a plan takes longer than any of our queries.
            "jit=off",
            "password_encryption=scram-sha-256",
            "log_timezone=UTC",
            "timezone=UTC",
        ] {
            command.args(["-c", setting]);
        }
        command.args(["-p", &port.to_string()]);
        let pg_isready = self.bin.join("pg_isready");
        let is_ready = move || answers(pg_isready.clone(), port).boxed();
        self.program.start(command, READY_LIMIT, is_ready).await.map_err(|error| {
            let data = self.program.folder.display();
            anyhow!(
                "{error:#}; if it is the database that is broken, restore {data} from a backup, or move it away to begin \
                 with an empty one"
            )
        })
    }
}

/// Whether a Postgres answers on that port.
async fn answers(pg_isready: PathBuf, port: u16) -> bool {
    let status = Command::new(pg_isready)
        .args(["-q", "-t", "2", "-h", "127.0.0.1", "-p", &port.to_string()])
        .stdin(Stdio::null())
        .status()
        .await;
    status.is_ok_and(|status| status.success())
}

fn program(folder: &DataFolder) -> Program {
    Program {
        name: "postgres",
        title: "Postgres",
        folder: folder.join("postgres/data"),
        log: folder.join("postgres/server.log"),
        // The fast shutdown: it ends its connections instead of waiting for them.
        stop_signal: Signal::SIGINT,
    }
}

/// The programs of the version that made the database, or the newest for a new one.
fn programs_for(data: &Path) -> anyhow::Result<PathBuf> {
    let found = programs::postgres();
    let version = std::fs::read_to_string(data.join("PG_VERSION"))
        .ok()
        .and_then(|text| programs::major(text.trim()));
    let Some((newest, bin)) = found.first() else {
        bail!("PostgreSQL is not installed: run `apt-get install postgresql`, or `make up`, which does");
    };
    match version {
        None => Ok(bin.clone()),
        Some(version) => match found.iter().find(|(found, _)| *found == version) {
            Some((_, bin)) => Ok(bin.clone()),
            None => bail!(
                "the database in {} was made by PostgreSQL {version}, and this machine has {newest}: install \
                 postgresql-{version}, or move the folder away to begin with an empty database",
                data.display()
            ),
        },
    }
}
