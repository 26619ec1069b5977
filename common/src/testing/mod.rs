//! Fixtures for tests: a store and a queue of one's own on the real services, and waiting for a level.
//!
//! The test command sets `HOTHOUSE_TEST_REDIS_URL`; the database comes from `#[sqlx::test]`.

mod contents;
mod duties;
mod rollback;
mod worker;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use uuid::Uuid;

pub use contents::Contents;
pub use rollback::Saved;
pub use worker::{TestWorker, failure, ids, light};

use crate::clock::Clock;
use crate::config::{Leases, Redis, Secret};
use crate::ids::TenantId;
use crate::job::event::Event;
use crate::job::spec::{JobSpec, Kind, SlotClass, class_of};
use crate::job::{Concurrency, Job, JobState, Links, NewJob, Strategy};
use crate::log::Log;
use crate::queue::{Generation, Queue};
use crate::store::Store;
use crate::store::insert::{Accepted, Submission};

/// A clock that tests move.
#[derive(Clone, Debug, Default)]
pub struct MockClock {
    offset_us: Arc<AtomicI64>,
}

impl MockClock {
    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.offset_us
            .fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// How far it is from the system's clock.
    pub fn offset(&self) -> TimeDelta {
        TimeDelta::microseconds(self.offset_us.load(Ordering::SeqCst))
    }

    /// The clock to hand to the code under test.
    pub fn clock(&self) -> Clock {
        let (this, system) = (self.clone(), Clock::system());
        Clock::from_fn(move || system.now() + this.offset())
    }

    /// Its time.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock().now()
    }
}

/// The default lease times.
pub fn leases() -> Leases {
    Leases {
        ttl: Duration::from_secs(6),
        heartbeat: Duration::from_secs(2),
        run_on: Duration::from_secs(5),
        dispatched_max: 10_000,
        lanes_max: 200,
    }
}

/// `[redis]` of the test's Redis with a prefix of its own.
pub fn redis_section() -> Redis {
    let url = std::env::vars()
        .find(|(name, _)| name == "HOTHOUSE_TEST_REDIS_URL")
        .map(|(_, url)| url);
    Redis {
        url: Secret::from(url.expect("HOTHOUSE_TEST_REDIS_URL is set by the test command: run `make test`")),
        url_file: None,
        prefix: format!("test-{}", Uuid::new_v4().simple()),
        shards: 1,
        connections_max: 8,
        response_timeout: Duration::from_secs(5),
    }
}

/// A store, a queue and a clock of one's own.
#[derive(Clone, Debug)]
pub struct TestEnv {
    /// The database of the test.
    pub store: Store,
    /// The keys of the test.
    pub queue: Queue,
    /// Both joined.
    pub log: Log,
    /// The clock of the test.
    pub clock: MockClock,
    /// A tenant.
    pub tenant_id: TenantId,
    /// How the queue is reached.
    pub redis: Redis,
}

impl TestEnv {
    /// An environment over the database that `#[sqlx::test]` made, with an open generation.
    pub async fn new(pool: PgPool) -> Self {
        Self::with_leases(pool, &leases()).await
    }

    /// The same with other lease settings.
    pub async fn with_leases(pool: PgPool, leases: &Leases) -> Self {
        Self::with(pool, leases, redis_section()).await
    }

    /// The same with a Redis of one's own.
    pub async fn with(pool: PgPool, leases: &Leases, redis: Redis) -> Self {
        let store = Store::from_pool(pool);
        let queue = Queue::open(&redis, leases).unwrap();
        let (log, clock) = (Log::new(store.clone(), queue.clone()), MockClock::default());
        let env = Self {
            store,
            queue,
            log,
            clock,
            tenant_id: TenantId::new(),
            redis,
        };
        env.open().await;
        env
    }

    /// Begins and opens a generation in every shard.
    pub async fn open(&self) {
        for shard in self.queue.shards() {
            if let Generation::Closed(begun) = self.queue.begin_generation(shard).await.unwrap() {
                assert!(self.queue.open_generation(shard, begun).await.unwrap());
            }
        }
    }

    /// Moves the clock of the code under test and of the scripts.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.queue.set_clock_offset(self.clock.offset());
    }

    /// A noop job of the test's tenant.
    pub fn noop(&self) -> NewJob {
        self.job(JobSpec::new(Kind::Noop), b"{}".to_vec())
    }

    /// One that needs one of so many places of a key.
    pub fn keyed(&self, key: &str, limit: u32) -> NewJob {
        let mut job = self.noop();
        job.spec.concurrency = Some(Concurrency {
            key: key.to_owned(),
            limit,
            strategy: Strategy::Queue,
        });
        job
    }

    /// A job of the test's tenant.
    pub fn job(&self, spec: JobSpec, input: Vec<u8>) -> NewJob {
        let slot = if spec.kind == Kind::Exec {
            SlotClass::Sandbox
        } else {
            SlotClass::Light
        };
        NewJob {
            id: crate::ids::JobId::new(),
            tenant_id: self.tenant_id,
            class: class_of(slot, &spec.labels),
            spec,
            input,
            created_at: self.clock.now(),
            api_key_id: None,
            links: Links::default(),
        }
    }

    /// Inserts a job.
    pub async fn insert(&self, job: &NewJob) {
        let submission = Submission {
            tenant_id: job.tenant_id,
            jobs: vec![job.clone()],
            idempotency: None,
        };
        let accepted = self.store.insert(&[submission]).await.pop().unwrap().unwrap();
        assert!(matches!(accepted, Accepted::Inserted));
    }

    /// Inserts and dispatches a job.
    pub async fn enqueue(&self, job: &NewJob) {
        self.insert(job).await;
        self.queue
            .dispatch(&[crate::queue::Dispatch::from_new(job)])
            .await
            .unwrap();
    }

    /// The state of a job in Postgres.
    pub async fn state(&self, id: crate::ids::JobId) -> JobState {
        self.row(id).await.state
    }

    /// The row of a job.
    pub async fn row(&self, id: crate::ids::JobId) -> Job {
        self.store
            .jobs(&[id])
            .await
            .unwrap()
            .pop()
            .expect("the job is in Postgres")
    }

    /// Every event of a job, read page by page as a follower does.
    ///
    /// # Panics
    /// When a number is not above the one before it.
    pub async fn events(&self, tenant_id: TenantId, id: crate::ids::JobId, limit: usize) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        loop {
            let after = events.last().map_or(0, |event| event.seq);
            let page = self
                .log
                .read(tenant_id, id, after, limit)
                .await
                .unwrap()
                .expect("the tenant has the job");
            for event in &page.events {
                assert!(
                    event.seq > events.last().map_or(0, |last| last.seq),
                    "{event:?} after {:?}",
                    events.last()
                );
                events.push(event.clone());
            }
            if !page.more || page.events.is_empty() {
                return events;
            }
        }
    }

    /// Keys that hold something about a job, a tenant or a lane: none when everything has ended; what
    /// passes by itself, logs and who keeps a sandbox, is left out, as is what the sweep forgets.
    pub async fn leftovers(&self) -> Vec<String> {
        let kept = "gen wake:light wake:sandbox views weights paused limits asked unleased";
        let is_kept = |key: &String| kept.split(' ').any(|kept| key.ends_with(&format!(":{kept}")));
        let keys = self.queue.keys().await.unwrap().into_iter();
        let passes = |key: &String| key.contains(":log:") || key.contains(":kept:");
        keys.filter(|key| !is_kept(key) && !passes(key)).collect()
    }

    /// Jobs that are queued or run and are not found where the store looks for them, and places of jobs that are not queued.
    pub async fn misplaced(&self) -> Vec<crate::ids::JobId> {
        let sql = "select id from jobs where state = 'queued'
                and (tenant_id, queue, class, priority, id) not in (select tenant_id, queue, class, priority, id from queued_jobs)
             union all select id from queued_jobs where id not in (select id from jobs where state = 'queued')
             union all select id from jobs where state = 'running' and (id, worker_id) not in
                (select unnest(job_ids), worker_id from handouts)";
        sqlx::query_scalar(sql).fetch_all(self.store.pool()).await.unwrap()
    }

    /// Forgets everything that Redis knows of the test, as a wipe does.
    pub async fn wipe_redis(&self) {
        self.forget(|_key| true).await;
    }

    /// Forgets who was called for jobs that are claimed alone: that passes by the clock of Redis, which no test moves.
    pub async fn forget_calls(&self) {
        self.forget(|key| key.contains(":alone:")).await;
    }

    /// Forgets what workers asked for just now, as a quarter of a minute does.
    pub async fn forget_servers(&self) {
        self.forget(|key| key.ends_with(":asked")).await;
    }

    async fn forget(&self, which: impl Fn(&str) -> bool) {
        let client = redis::Client::open(self.redis.url.expose()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        for key in self.queue.keys().await.unwrap().iter().filter(|key| which(key)) {
            let _: i64 = redis::cmd("DEL").arg(key).query_async(&mut connection).await.unwrap();
        }
    }
}

/// Waits until `condition` answers something, looking again and again; panics after `limit`.
///
/// # Panics
/// When the level is not reached in time.
pub async fn eventually<T, F>(limit: Duration, what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
