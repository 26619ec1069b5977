//! A Redis that comes back with older contents: one that was killed, and started from what it had saved before.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use assert_matches::assert_matches;
use common::config::{Redis, Secret};
use common::queue::{Beat, Error, Queue};
use common::service::Duty;
use common::testing::{TestEnv, eventually, ids, leases, light, redis_section};
use scheduler::duties::Redispatch;
use sqlx::PgPool;

struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let folder = std::env::temp_dir().join(format!("hothouse-rollback-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).unwrap();
        let child = Self::spawn(port, &folder);
        Self { child, port, folder }
    }

    fn spawn(port: u16, folder: &PathBuf) -> Child {
        Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--appendonly",
                "no",
                "--save",
                "",
            ])
            .current_dir(folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn section(&self) -> Redis {
        Redis {
            url: Secret::from(format!("redis://127.0.0.1:{}/", self.port)),
            ..redis_section()
        }
    }

    async fn answers(queue: &Queue) {
        eventually(Duration::from_secs(20), "Redis answers", async || {
            queue.time().await.ok()
        })
        .await;
    }

    fn save(&self) {
        let port = self.port.to_string();
        let saved = Command::new("redis-cli").args(["-p", &port, "save"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&saved.stdout).trim(), "OK");
    }

    /// SIGKILL, and a new one from what was saved.
    fn roll_back(&mut self) {
        self.kill();
        self.child = Self::spawn(self.port, &self.folder);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_redis_went_back_on_is_neither_lost_nor_run_beside_a_limit(pool: PgPool) {
    let mut server = Server::start();
    Server::answers(&Queue::open(&server.section(), &leases()).unwrap()).await;
    let env = TestEnv::with(pool, &leases(), server.section()).await;
    let (holder, other) = (env.worker(), env.worker());
    let (held, next, later) = (env.keyed("key", 1), env.keyed("key", 1), env.noop());
    env.enqueue(&held).await;
    env.enqueue(&next).await;
    server.save();
    let running = holder.one().await;
    assert_eq!(running.job.id, held.id);
    env.enqueue(&later).await;
    server.roll_back();
    Server::answers(&env.queue).await;

    // What came back says that it is open, and that the key is free. Whoever leads now has seen nothing of what was before.
    assert_matches!(other.take(&light(5)).await, Err(Error::Closed));
    assert_eq!(holder.beat(&running).await, Beat::Unknown);
    let redispatch = Redispatch::new(env.store.clone(), env.queue.clone(), leases().dispatched_max);
    let tick = async || redispatch.tick(env.clock.now()).await.unwrap();
    tick().await;
    assert_matches!(other.take(&light(5)).await, Err(Error::Closed));
    assert!(holder.register(&running).await);
    for _half in 0..2 {
        env.advance(leases().ttl / 2);
        assert_eq!(holder.beat(&running).await, Beat::Ok);
    }
    tick().await;
    let claimed = other.claim(5).await;
    assert_eq!(ids(&claimed), [later.id]);
    assert!(other.succeed(&claimed[0]).await && holder.succeed(&running).await);
    let claimed = other.claim(5).await;
    assert_eq!(ids(&claimed), [next.id]);
    assert!(other.succeed(&claimed[0]).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}
