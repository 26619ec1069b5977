//! The private Postgres and the private Redis together: started at once, watched, ended in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::folder::DataFolder;
use super::postgres::Postgres;
use super::progress::Step;
use super::redis::Redis;

/// How often a dead server is noticed, and how long to wait before it is started once more.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Both servers. Cheap to clone; clones are the same servers.
#[derive(Debug, Clone)]
pub(crate) struct Stores {
    servers: Arc<Mutex<Option<(Postgres, Redis)>>>,
    /// Hothouse's way into Postgres.
    pub(crate) postgres_url: String,
    /// The way into Redis.
    pub(crate) redis_url: String,
}

/// The ports that somebody wants them on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ports {
    pub(crate) postgres: Option<u16>,
    pub(crate) redis: Option<u16>,
}

impl Stores {
    /// Starts both, or takes over those that an `up` left behind when it was killed.
    ///
    /// # Errors
    /// A sentence that says what is missing or broken; what had been started is ended then.
    pub(crate) async fn start(folder: &DataFolder, ports: Ports) -> anyhow::Result<Self> {
        let step = Step::begin("databases");
        let (postgres, redis) = tokio::join!(
            Postgres::start(folder, ports.postgres),
            Redis::start(folder, ports.redis)
        );
        let (postgres, redis) = match (postgres, redis) {
            (Ok(postgres), Ok(redis)) => (postgres, redis),
            (Ok(postgres), Err(error)) => {
                postgres.stop().await;
                return Err(error);
            }
            (Err(error), redis) => {
                if let Ok(redis) = redis {
                    redis.stop().await;
                }
                // A start that failed half-way may have left its process.
                Postgres::stop_left_over(folder).await;
                return Err(error);
            }
        };
        let told = |was_running: bool| if was_running { ", which was still running" } else { "" };
        step.done(&format!(
            "Postgres on port {}{}, Redis on port {}{}",
            postgres.port(),
            told(postgres.was_running()),
            redis.port(),
            told(redis.was_running())
        ));
        let (postgres_url, redis_url) = (postgres.url(), redis.url());
        Ok(Self {
            servers: Arc::new(Mutex::new(Some((postgres, redis)))),
            postgres_url,
            redis_url,
        })
    }

    /// Starts either again when it has died, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL))
            .await
            .is_some()
        {
            let mut servers = self.servers.lock().await;
            let Some((postgres, redis)) = servers.as_mut() else {
                return;
            };
            if !postgres.is_alive() {
                tracing::warn!("Postgres has ended: starting it again");
                if let Err(error) = postgres.restart().await {
                    tracing::error!("{error:#}");
                }
            }
            if !redis.is_alive() {
                tracing::warn!("Redis has ended: starting it again");
                if let Err(error) = redis.restart().await {
                    tracing::error!("{error:#}");
                }
            }
        }
    }

    /// Ends both: Redis first, for it is only the index of what Postgres holds.
    pub(crate) async fn stop(self) {
        if let Some((postgres, redis)) = self.servers.lock().await.take() {
            redis.stop().await;
            postgres.stop().await;
        }
    }

    /// Ends those that an `up` left behind when it was killed. Returns how many there were.
    pub(crate) async fn stop_left_over(folder: &DataFolder) -> usize {
        usize::from(Redis::stop_left_over(folder).await) + usize::from(Postgres::stop_left_over(folder).await)
    }
}
