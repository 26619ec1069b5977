//! Hothouse as separate processes, each of the real binaries, over a database and a Redis of their own, to be killed,
//! frozen and cut off from each other. Everything ends with the fixture, whether the test passed or not.

mod api;
mod engine;
mod held;
mod log;
mod postgres;
pub(crate) mod process;
mod proxy;
mod redis;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

pub(crate) use api::Api;
pub(crate) use engine::{Engine, IMAGE, processes_of, processes_of_jobs, until_dead};
pub(crate) use held::Held;
pub(crate) use log::{Follower, assert_whole};
pub(crate) use postgres::Postgres;
pub(crate) use process::Process;
pub(crate) use proxy::Proxy;
pub(crate) use redis::Redis;

/// How long anything may take that should happen at once, on a slow machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) const KEY: &str = "hh_cluster_of_a_test_0123456789";

/// One cluster at a time: each takes all of a small machine. Where every test is a process, the runner sees to it.
pub(crate) static ALONE: Mutex<()> = Mutex::const_new(());

/// Whose sandboxes workers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sandboxes {
    None,
    Docker,
    Bubblewrap,
}

/// What to start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) workers: usize,
    pub(crate) schedulers: usize,
    pub(crate) sandboxes: Sandboxes,
    /// Sandboxes that each worker keeps warm.
    pub(crate) warm: usize,
    /// Sandboxes that each worker has at most.
    pub(crate) sandboxes_max: usize,
    /// Further settings of every process.
    pub(crate) settings: &'static [(&'static str, &'static str)],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 2,
            schedulers: 1,
            sandboxes: Sandboxes::Docker,
            warm: 2,
            sandboxes_max: 16,
            settings: &[],
        }
    }
}

/// The processes and what they stand on.
pub(crate) struct Cluster {
    pub(crate) server: Process,
    pub(crate) workers: Vec<Process>,
    pub(crate) schedulers: Vec<Process>,
    pub(crate) redis: Redis,
    /// Between the processes and Postgres.
    pub(crate) postgres: Proxy,
    /// Between the workers and the Docker engine.
    pub(crate) docker: Proxy,
    pub(crate) api: Api,
    pub(crate) folder: PathBuf,
    database: String,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts everything and waits until it can work.
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::start_on(setup, None).await
    }

    /// The same with sandboxes of an engine of the test's own, with nothing between it and the workers.
    pub(crate) async fn start_on(setup: Setup, engine: Option<&Engine>) -> Self {
        let alone = ALONE.lock().await;
        let name = format!("hothouse_cluster_{}", Uuid::now_v7().simple());
        let folder = std::env::temp_dir().join(&name);
        fs::create_dir_all(folder.join("environments")).unwrap();
        fs::write(folder.join("environments/default.toml"), environment(setup)).unwrap();
        let postgres_url = required("HOTHOUSE_TEST_POSTGRES_URL");
        psql(&postgres_url, &format!("create database {name}"));
        let mut database = url::Url::parse(&postgres_url).unwrap();
        let address = (database.host_str().unwrap().to_owned(), database.port().unwrap_or(5432));
        database.set_path(&name);

        let postgres = Proxy::tcp(address).await;
        let docker = match engine {
            Some(_) => Proxy::none(),
            None => docker_proxy(setup, &folder),
        };
        let redis = Redis::start(&folder).await;
        let port = process::free_port();
        let api = Api::new(port, KEY);
        let mut proxied = database.clone();
        proxied.set_ip_host("127.0.0.1".parse().unwrap()).unwrap();
        proxied.set_port(Some(postgres.port())).unwrap();
        let mut env = environment_of(setup, &folder, docker.path());
        env.extend(engine.map(|engine| ("HOTHOUSE_SANDBOX__DOCKER_HOST".to_owned(), engine.host())));
        env.extend(engine.map(|_| ("HOTHOUSE_SANDBOX__IMAGE".to_owned(), IMAGE.to_owned())));
        env.extend([
            ("HOTHOUSE_DATABASE__URL".to_owned(), proxied.to_string()),
            ("HOTHOUSE_REDIS__URL".to_owned(), redis.url()),
            ("HOTHOUSE_HTTP__ADDRESS".to_owned(), format!("127.0.0.1:{port}")),
        ]);
        let process = |binary: &str, name: String| {
            let mut env = env.clone();
            env.push(("HOTHOUSE_WORKER__NAME".to_owned(), name.clone()));
            let health = format!("127.0.0.1:{}", process::free_port());
            env.push(("HOTHOUSE_WORKER__HEALTH_ADDRESS".to_owned(), health.clone()));
            env.push(("HOTHOUSE_SCHEDULER__HEALTH_ADDRESS".to_owned(), health));
            Process::new(name, &beside(binary), env, &folder)
        };
        let mut this = Self {
            server: process("hothouse-api", "api".to_owned()),
            workers: (0..setup.workers)
                .map(|n| process("hothouse-worker", format!("worker-{n}")))
                .collect(),
            schedulers: (0..setup.schedulers)
                .map(|n| process("hothouse-scheduler", format!("scheduler-{n}")))
                .collect(),
            redis,
            postgres,
            docker,
            api,
            folder: folder.clone(),
            database: database.to_string(),
            _alone: alone,
        };
        this.begin().await;
        this
    }

    async fn begin(&mut self) {
        self.server.start();
        self.api.ready().await;
        for process in self.schedulers.iter_mut().chain(&mut self.workers) {
            process.start();
        }
        self.open().await;
        let workers = self.workers.len();
        eventually(SOON, "the workers are there", || {
            (self.worker_ids().len() == workers).then_some(())
        })
        .await;
    }

    /// Waits until Redis is open for claims.
    pub(crate) async fn open(&self) {
        eventually(SOON, "Redis is built", || self.redis.is_open().then_some(())).await;
    }

    /// Asks the database, past the proxy; a line for each row, columns apart by `|`.
    pub(crate) fn sql(&self, query: &str) -> Vec<String> {
        psql(&self.database, query)
    }

    /// Does this in a transaction that stays open until the answer is dropped.
    pub(crate) async fn hold(&self, statement: &str) -> Held {
        Held::begin(&self.database, statement).await
    }

    /// Waits until somebody's statement with this in it waits for a lock.
    pub(crate) async fn waits(&self, statement: &str) {
        let waiting = format!(
            "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
                and query ~* '{statement}'"
        );
        eventually(SOON, statement, || (!self.sql(&waiting).is_empty()).then_some(())).await;
    }

    /// Every worker that has ever started here.
    pub(crate) fn worker_ids(&self) -> Vec<String> {
        self.sql("select id from workers order by started_at")
    }

    /// The process that has this id, as an index.
    pub(crate) fn worker_of(&self, worker_id: &str) -> usize {
        let name = self.sql(&format!("select name from workers where id = '{worker_id}'"));
        self.workers.iter().position(|worker| worker.name() == name[0]).unwrap()
    }

    /// Containers of a worker; only those that run, or all.
    pub(crate) fn containers(worker_id: &str, all: bool) -> Vec<String> {
        let filter = format!("label=hothouse.worker={worker_id}");
        let flags = if all { "-aq" } else { "-q" };
        lines(&docker(&["ps", flags, "--no-trunc", "--filter", &filter]))
    }

    /// The container of a worker in which a process with this text in its command line runs.
    pub(crate) fn container_with(worker_id: &str, text: &str) -> Option<String> {
        let mut containers = Self::containers(worker_id, false).into_iter();
        containers.find(|container| Self::runs(container, text))
    }

    /// Whether a process with this text in its command line runs in a container.
    pub(crate) fn runs(container: &str, text: &str) -> bool {
        // One that is gone runs nothing.
        let top = docker(&["top", container, "-eo", "pid,args"]);
        String::from_utf8_lossy(&top.stdout).contains(text)
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.workers
            .iter_mut()
            .chain(&mut self.schedulers)
            .chain([&mut self.server])
    }

    /// The containers of a dead worker that still run at the deadline; none as soon as none is seen, though one that was
    /// being made may show up after that.
    fn running_until(worker_id: &str, deadline: Instant) -> Vec<String> {
        loop {
            let running = Self::containers(worker_id, false);
            if running.is_empty() || Instant::now() >= deadline {
                return running;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends what is left and answers what should not have been.
    fn clean_up(&mut self) -> Vec<String> {
        // In a failing test nothing may fail again.
        let workers = try_psql(&self.database, "select id from workers").unwrap_or_default();
        self.processes().for_each(Process::kill);
        let mut left = Vec::new();
        if self.docker.path().is_some() {
            let deadline = Instant::now() + SOON;
            for worker in workers {
                let running = Self::running_until(&worker, deadline);
                left.extend(running.into_iter().map(|id| format!("container {id} of {worker}")));
                // One that was being made when its worker was killed never ran; the reaper of a later worker takes it.
                for container in Self::containers(&worker, true) {
                    docker(&["rm", "-f", &container]);
                }
            }
        }
        self.redis.kill();
        let (server, name) = self.database.rsplit_once('/').unwrap();
        if try_psql(
            &format!("{server}/postgres"),
            &format!("drop database {name} with (force)"),
        )
        .is_none()
        {
            left.push(format!("database {name}"));
        }
        left
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let is_failing = std::thread::panicking();
        if is_failing {
            let processes: Vec<String> = self.processes().map(|process| process.last_words()).collect();
            report(&processes.join("\n"));
        }
        let left = self.clean_up();
        drop(fs::remove_dir_all(&self.folder));
        assert!(is_failing || left.is_empty(), "left behind: {left:?}");
    }
}

#[expect(
    clippy::print_stderr,
    reason = "what the processes said belongs to a failed test's output"
)]
fn report(text: &str) {
    eprintln!("{text}");
}

/// The default environment with so many sandboxes.
fn environment(setup: Setup) -> String {
    let (size, max) = (
        format!("\nsize = {}\n", setup.warm),
        format!("\nmax = {}\n", setup.sandboxes_max),
    );
    let text = include_str!("../../../environments/default.toml");
    let text = text.replace("\nsize = 5\n", &size).replace("\nmax = 16\n", &max);
    assert!(text.contains(&size) && text.contains(&max), "{text}");
    text
}

fn environment_of(setup: Setup, folder: &Path, docker: Option<&Path>) -> Vec<(String, String)> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let mut env = vec![
        ("HOTHOUSE_AUTH__ADMIN_KEY", KEY.to_owned()),
        (
            "HOTHOUSE_OBJECTS__URL",
            format!("file://{}", text(&folder.join("objects"))),
        ),
        (
            "HOTHOUSE_SANDBOX__DRIVER",
            match setup.sandboxes {
                Sandboxes::None => "none",
                Sandboxes::Docker => "docker",
                Sandboxes::Bubblewrap => "bubblewrap",
            }
            .to_owned(),
        ),
        ("HOTHOUSE_SANDBOX__ENVIRONMENTS", text(&folder.join("environments"))),
        ("HOTHOUSE_WORKER__SANDBOX_SLOTS", "4".to_owned()),
        (
            "HOTHOUSE_TELEMETRY__LOG",
            "info,common=debug,worker=debug,scheduler=debug".to_owned(),
        ),
    ];
    if setup.sandboxes == Sandboxes::Bubblewrap {
        env.push(("HOTHOUSE_SANDBOX__INIT", required("HOTHOUSE_TEST_INIT")));
    }
    env.extend(docker.map(|path| ("HOTHOUSE_SANDBOX__DOCKER_HOST", format!("unix://{}", text(path)))));
    env.extend(optional("HOTHOUSE_TEST_IMAGE").map(|image| ("HOTHOUSE_SANDBOX__IMAGE", image)));
    env.extend(setup.settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn docker_proxy(setup: Setup, folder: &Path) -> Proxy {
    if setup.sandboxes != Sandboxes::Docker {
        return Proxy::none();
    }
    let host = required("HOTHOUSE_TEST_DOCKER_HOST");
    let socket = host
        .strip_prefix("unix://")
        .expect("HOTHOUSE_TEST_DOCKER_HOST is a unix:// address");
    Proxy::unix(Path::new(socket), &folder.join("docker.sock"))
}

/// A binary of the workspace, built beside this test.
pub(crate) fn beside(binary: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_hothouse")).with_file_name(binary);
    assert!(
        path.is_file(),
        "{} is missing: build the whole workspace, as `make test` does",
        path.display()
    );
    path
}

pub(crate) fn optional(name: &str) -> Option<String> {
    std::env::vars().find(|(one, _)| one == name).map(|(_, value)| value)
}

pub(crate) fn required(name: &str) -> String {
    optional(name).unwrap_or_else(|| panic!("{name} is set by the test command: run `make test`"))
}

fn docker(words: &[&str]) -> Output {
    let host = required("HOTHOUSE_TEST_DOCKER_HOST");
    Command::new("docker").args(["-H", &host]).args(words).output().unwrap()
}

pub(crate) fn psql(url: &str, query: &str) -> Vec<String> {
    try_psql(url, query).unwrap_or_else(|| panic!("Postgres refuses {query}"))
}

pub(crate) fn try_psql(url: &str, query: &str) -> Option<Vec<String>> {
    let output = Command::new("psql")
        .args(["-XAtq", "-d", url, "-c", query])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| lines(&output))
}

fn lines(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Waits until `look` answers something.
pub(crate) async fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
