//! Schedulers as parts of this process and as processes of their own.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::clock::Clock;
use common::config::{self, Secret};
use common::health::Health;
use common::lifecycle::Lifecycle;
use common::queue::Queue;
use common::store::Store;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scheduler::Config;
use sqlx::ConnectOptions;
use tokio::task::JoinHandle;

use crate::fixture::Fixture;

impl Fixture {
    fn variables(&self) -> Vec<(String, String)> {
        let url = self.pool.connect_options().to_url_lossy();
        let variables = [
            ("HOTHOUSE_DATABASE__URL", url.as_str()),
            ("HOTHOUSE_DATABASE__CONNECTIONS_MAX", "5"),
            ("HOTHOUSE_REDIS__URL", self.env.redis.url.expose()),
            ("HOTHOUSE_REDIS__PREFIX", &self.env.redis.prefix),
        ];
        variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    /// A scheduler in this process.
    pub(crate) fn start(&self) -> Part {
        self.start_with_store().0
    }

    /// The same, and the store that it sees: its clock can be moved.
    pub(crate) fn start_with_store(&self) -> (Part, Store) {
        let mut config: Config = config::load(None, self.variables()).unwrap();
        config.database.url = Secret::from(self.pool.connect_options().to_url_lossy().to_string());
        let store = Store::open(&config.database).unwrap();
        let queue = Queue::open(&config.redis, &config.leases).unwrap();
        let lifecycle = Lifecycle::new();
        let health = Health::new(config.health.stall_max);
        let running = scheduler::serve(
            (store.clone(), queue),
            config,
            Clock::system(),
            lifecycle.clone(),
            health,
        );
        let part = Part {
            running: lifecycle.tracker().spawn(running),
            lifecycle,
        };
        (part, store)
    }

    /// A scheduler as a process.
    pub(crate) fn spawn(&self) -> Process {
        let child = Command::new(env!("CARGO_BIN_EXE_hothouse-scheduler"))
            .envs(self.variables())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    /// The epoch of the leader, when its lease holds.
    pub(crate) async fn epoch(&self) -> Option<i64> {
        let sql = "select epoch from leaders where name = 'scheduler' and expires_at > clock_timestamp()";
        sqlx::query_scalar(sql).fetch_optional(&self.pool).await.unwrap()
    }
}

pub(crate) struct Part {
    lifecycle: Lifecycle,
    running: JoinHandle<()>,
}

impl Part {
    pub(crate) async fn stop(self) {
        self.lifecycle.stop();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.running).await;
        ended.expect("it stops").unwrap();
    }
}

/// A process that is killed when it is dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed and waited for already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
