//! What the storm rages over: real processes, each with wires of its own to a Postgres and a Redis of their own.

use std::path::{Path, PathBuf};

use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use super::plan::{APIS, Need, SCHEDULERS, WORKERS, is_worker, name_of};
use crate::cluster::{
    ALONE, Api, KEY, Postgres, Process, Proxy, Redis, SOON, beside, eventually, optional, process, psql, required,
    try_psql,
};

const DATABASE: &str = "torture";

/// Sandboxes that each worker keeps warm.
const WARM: usize = 2;

/// Sandboxes that a worker has at most.
pub(super) const SANDBOXES_MAX: usize = 8;

/// See the module.
pub(super) struct Rig {
    /// Logs, the database, and what the processes keep in files.
    pub(super) folder: PathBuf,
    pub(super) apis: Vec<Api>,
    /// Numbered as in the plan.
    pub(super) processes: Vec<Mutex<Process>>,
    pub(super) postgres: Mutex<Postgres>,
    pub(super) redis: Mutex<Redis>,
    /// To Postgres and to Redis, for each process.
    wires: Vec<[Proxy; 2]>,
    database: String,
    settings: Vec<(&'static str, String)>,
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    /// Starts everything and waits until it can work.
    pub(super) async fn start() -> Self {
        Self::start_with(|_| Vec::new()).await
    }

    /// The same with further settings of every process, which are told the rig's folder.
    pub(super) async fn start_with(settings: impl FnOnce(&Path) -> Vec<(&'static str, String)>) -> Self {
        let alone = ALONE.lock().await;
        let folder = std::env::temp_dir().join(format!("hothouse_torture_{}", Uuid::now_v7().simple()));
        std::fs::create_dir_all(folder.join("tmp")).unwrap();
        std::fs::create_dir_all(folder.join("environments")).unwrap();
        let environment = include_str!("../../../../environments/default.toml");
        let environment = environment
            .replace("\nsize = 5\n", &format!("\nsize = {WARM}\n"))
            .replace("\nmax = 16\n", &format!("\nmax = {SANDBOXES_MAX}\n"));
        std::fs::write(folder.join("environments/default.toml"), environment).unwrap();
        let postgres = Postgres::start(&folder).await;
        let redis = Redis::start(&folder).await;
        psql(&postgres.url("postgres"), &format!("create database {DATABASE}"));
        let mut this = Self {
            apis: Vec::new(),
            processes: Vec::new(),
            wires: Vec::new(),
            database: postgres.url(DATABASE),
            settings: settings(&folder),
            folder,
            postgres: Mutex::new(postgres),
            redis: Mutex::new(redis),
            _alone: alone,
        };
        for number in 0..APIS + WORKERS + SCHEDULERS {
            this.add(number).await;
        }
        this.begin().await;
        this
    }

    async fn add(&mut self, number: usize) {
        let local = "127.0.0.1".to_owned();
        let postgres = Proxy::tcp((local.clone(), self.postgres.get_mut().port())).await;
        let redis = Proxy::tcp((local, self.redis.get_mut().port())).await;
        let mut env = self.environment();
        let health = format!("127.0.0.1:{}", process::free_port());
        env.extend(self.settings.iter().cloned());
        env.extend([
            ("HOTHOUSE_WORKER__HEALTH_ADDRESS", health.clone()),
            ("HOTHOUSE_SCHEDULER__HEALTH_ADDRESS", health),
            (
                "HOTHOUSE_DATABASE__URL",
                format!("postgres://hothouse@127.0.0.1:{}/{DATABASE}", postgres.port()),
            ),
            ("HOTHOUSE_REDIS__URL", format!("redis://127.0.0.1:{}/", redis.port())),
            ("HOTHOUSE_WORKER__NAME", name_of(number)),
        ]);
        let binary = if number < APIS {
            let port = process::free_port();
            env.push(("HOTHOUSE_HTTP__ADDRESS", format!("127.0.0.1:{port}")));
            self.apis.push(Api::new(port, KEY));
            "hothouse-api"
        } else if is_worker(number) {
            "hothouse-worker"
        } else {
            "hothouse-scheduler"
        };
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        // Any build may be tortured: without a folder, the one that the test itself belongs to.
        let program = optional("HOTHOUSE_TORTURE_BINARIES").filter(|folder| !folder.is_empty());
        let program = program.map_or_else(|| beside(binary), |folder| Path::new(&folder).join(binary));
        let process = Process::new(name_of(number), &program, env, &self.folder);
        self.processes.push(Mutex::new(process));
        self.wires.push([postgres, redis]);
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let below = |name: &str| self.folder.join(name).to_str().unwrap().to_owned();
        let mut env = vec![
            ("TMPDIR", below("tmp")),
            ("HOTHOUSE_AUTH__ADMIN_KEY", KEY.to_owned()),
            ("HOTHOUSE_OBJECTS__URL", format!("file://{}", below("objects"))),
            ("HOTHOUSE_SANDBOX__ENVIRONMENTS", below("environments")),
            ("HOTHOUSE_SANDBOX__CLEANUP_INTERVAL", "5s".to_owned()),
            ("HOTHOUSE_WORKER__SANDBOX_SLOTS", "4".to_owned()),
            ("HOTHOUSE_WORKER__DRAIN", "3s".to_owned()),
            (
                "HOTHOUSE_TELEMETRY__LOG",
                "info,common=debug,api=debug,worker=debug,scheduler=debug".to_owned(),
            ),
        ];
        if let Some(host) = optional("HOTHOUSE_TORTURE_DOCKER_HOST") {
            env.push(("HOTHOUSE_SANDBOX__DRIVER", "docker".to_owned()));
            env.push(("HOTHOUSE_SANDBOX__DOCKER_HOST", host));
            env.extend(optional("HOTHOUSE_TEST_IMAGE").map(|image| ("HOTHOUSE_SANDBOX__IMAGE", image)));
        } else {
            env.push(("HOTHOUSE_SANDBOX__DRIVER", "bubblewrap".to_owned()));
            env.push(("HOTHOUSE_SANDBOX__INIT", required("HOTHOUSE_TEST_INIT")));
        }
        env
    }

    async fn begin(&mut self) {
        for process in &mut self.processes {
            process.get_mut().start();
        }
        for api in &self.apis {
            api.ready().await;
        }
        let redis = self.redis.get_mut();
        eventually(SOON, "Redis is built", || redis.is_open().then_some(())).await;
        let database = self.database.clone();
        eventually(SOON, "the workers are there", || {
            (psql(&database, "select count(*) from workers") == [WORKERS.to_string()]).then_some(())
        })
        .await;
    }

    /// Where processes that are no APIs say how they are doing, by their numbers.
    pub(super) async fn health_addresses(&self) -> Vec<String> {
        let mut addresses = Vec::new();
        for process in &self.processes[APIS..] {
            let process = process.lock().await;
            addresses.push(process.setting("HOTHOUSE_WORKER__HEALTH_ADDRESS").to_owned());
        }
        addresses
    }

    /// The wire of a process.
    pub(super) fn wire(&self, process: usize, need: Need) -> &Proxy {
        &self.wires[process][usize::from(need == Need::Redis)]
    }

    /// Asks the database past every wire; a line for each row.
    pub(super) fn sql(&self, query: &str) -> Vec<String> {
        psql(&self.database, query)
    }

    /// As `sql`; none while Postgres is away.
    pub(super) fn try_sql(&self, query: &str) -> Option<Vec<String>> {
        try_psql(&self.database, query)
    }

    /// Ends every process in good order; answers those that did not end well.
    pub(super) async fn stop(&self) -> Vec<String> {
        let mut badly = Vec::new();
        for process in &self.processes {
            let mut process = process.lock().await;
            let status = process.terminate(SOON).await;
            if !status.success() {
                badly.push(format!("{} ended with {status}", process.name()));
            }
        }
        badly
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A frozen one is killed all the same. What is in the folder is kept when something went wrong.
        for process in &mut self.processes {
            process.get_mut().kill();
        }
        self.redis.get_mut().kill();
    }
}
