//! Redis: a rebuildable index of who may work on which job now.
//!
//! A tenant lives in one shard, with all its backlogs, places, leases and logs; every key of a shard begins with its
//! root, `<prefix>:{s<n>}:`, so that each script touches one slot.
//!
//! | key below the root | holds |
//! |---|---|
//! | `gen` | hash: this index's generation, the server that it was written to, and whether it is open for claims |
//! | `idx` | hash: job → where it is, which attempt is expected, what it needs to run |
//! | `open` | sorted set: `lane tenant` with something to release or to wait for, by when it last began; a lane is `queue/class` |
//! | `lanes:<tenant>` | set: the same lanes of one tenant |
//! | `b:<lane>:<tenant>` | sorted set: a tenant's backlog in a lane |
//! | `p:<lane>:<tenant>` | sorted set: those of its jobs that wait at a gate |
//! | `views` | hash: what workers claim (slot, labels, queues) → its number, the view; that → its present virtual time, and more: see `view.lua` |
//! | `ring:<view>:<group>`, `of:<view>:<group>:<tenant>` | sorted sets: tenants with a backlog by virtual time, and the lanes of each; a group is a queue that operators limit or pause, or `*` for all others |
//! | `tv:<view>` | sorted set: tenants that are ahead of the view's present, by virtual time |
//! | `leases` | sorted set: job → when its lease passes, ms |
//! | `unleased` | set of jobs that went on after an attempt, until a sweep sees them with a lease or without an entry |
//! | `limits` | hash: gate → limit of places, limit of starts, paused until; what operators set |
//! | `h:<gate>`, `s:<gate>`, `w:<gate>` | set of jobs that hold a place, list of the last starts, sorted set of who waits |
//! | `n:<gate>` | the largest limit and window of those starts |
//! | `w:t:<tenant>` | set of rings at whose end a tenant waits at its own gate |
//! | `kept:v:<conversation>` | the worker that keeps a conversation's sandbox, and when the offer of its next turn ends |
//! | `w:k:<worker>` | sorted set: turns that are offered to a worker, by the end of the offer, ms |
//! | `asked` | sorted set: what workers claim, as slot, labels and queues, by when one of them last asked |
//! | `timers` | sorted set: gate → when it may open by time, ms |
//! | `alone:<lane>` | the worker that empties itself to claim a job alone |
//! | `paused`, `weights` | queues that release nothing; weights of tenants and queues |
//! | `spilled`, `crowded` | full backlogs; tenants that have as many lanes as they may |
//! | `lines` | set of `gate lane tenant`: jobs of the lane that wait at the gate were left in Postgres |
//! | `wake:<slot>` | stream of one entry that carries no job: the only key that is read blocking |
//! | `probe` | written to see whether writes go through; gone at once |
//! | `cancel:<worker>` | set of jobs that a worker should stop |
//! | `log:<job>` | stream: the tail of a job's event log |
//! | `m:<account>…` | what is known of a model provider's key: see `accounts.rs` |
//! | `hints`, `cancels` | pub/sub: `job:seq`; losing one loses nothing |
//!
//! # Invariants
//! - Payloads never come here.
//! - A job is in one place only, and the index names it.
//! - While `gen` is missing, closed or another server's nothing is claimed: Redis was wiped, or may be behind, and running
//!   jobs register first.

mod accounts;
mod adopt;
mod claim;
mod crowded;
mod dispatch;
mod error;
mod full;
mod gate;
mod generation;
mod lease;
mod lines;
mod link;
mod log;
mod operate;
mod script;
mod sets;
mod spilled;
mod statistics;
mod sticky;
mod subscribe;
mod wake;
mod why;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use deadpool_redis::{Connection, Pool, Runtime};
use redis::IntoConnectionInfo as _;
use redis::io::tcp::TcpSettings;
use socket2::TcpKeepalive;

pub use accounts::{Admission, CallAsk, CallReport, OPEN as CIRCUIT_OPEN, Obstacle, PLACE_TTL, Trial};
pub use adopt::Among;
pub use claim::{Handout, Mode, Want};
pub use crowded::Crowded;
pub use dispatch::{Dispatch, Dispatched};
pub use error::Error;
pub use full::Full;
pub use gate::{FOREVER_MS, Gate, GateLimit, Hold};
pub use generation::{Begun, Generation};
pub use lease::{Acked, Beat, Expired, Keeps};
pub use lines::Line;
pub(crate) use log::READ_MAX;
pub use log::{Append, Appended};
pub use spilled::Spilled;
pub use statistics::Statistics;
pub use subscribe::{Channel, Hint};
pub use wake::Waker;
pub use why::{Place, Shut, Why};

use crate::config::{self, Leases, Redis};
use crate::ids::TenantId;
use link::Links;
use script::Scripts;

/// How often a server that says nothing is asked whether it lives: one that listens to hints never writes, and would not notice
/// that the machine at the other end is gone.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// So many questions without an answer end a connection.
const KEEPALIVES_MISSED: u32 = 3;

/// A handle on the dispatch index. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    links: Links,
    reading_links: Links,
    client: redis::Client,
    prefix: String,
    shards: u16,
    lease_ttl: Duration,
    dispatched_max: u32,
    lanes_max: u32,
    response_timeout: Duration,
    scripts: Scripts,
    clock_offset_ms: AtomicI64,
}

impl Queue {
    /// Opens a pool. Connections are made when they are needed, so this works while Redis is away.
    ///
    /// # Errors
    /// When the URL is not set or cannot be read.
    pub fn open(redis: &Redis, leases: &Leases) -> Result<Self, config::Error> {
        let invalid = |_hidden| config::Error::Invalid("redis.url is not a Redis URL".to_owned());
        let url = redis.resolved_url()?;
        let lively = TcpSettings::default().set_keepalive(
            TcpKeepalive::new()
                .with_time(KEEPALIVE)
                .with_interval(KEEPALIVE)
                .with_retries(KEEPALIVES_MISSED),
        );
        let server = url.expose().into_connection_info().map_err(invalid)?;
        let client = redis::Client::open(server.set_tcp_settings(lively)).map_err(invalid)?;
        let connection = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(redis.response_timeout))
            .set_response_timeout(Some(redis.response_timeout));
        let manager = deadpool_redis::Manager::new_with_config(url.expose(), connection).map_err(invalid)?;
        let pool = Pool::builder(manager)
            .max_size(redis.connections_max)
            .wait_timeout(Some(redis.response_timeout))
            .create_timeout(Some(redis.response_timeout))
            .recycle_timeout(Some(redis.response_timeout))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| config::Error::Invalid(format!("redis: {error}")))?;
        if redis.shards == 0 {
            return Err(config::Error::Invalid("redis.shards must be at least 1".to_owned()));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                pool,
                links: Links::default(),
                reading_links: Links::default(),
                client,
                prefix: redis.prefix.clone(),
                shards: redis.shards,
                lease_ttl: leases.ttl,
                dispatched_max: leases.dispatched_max,
                lanes_max: leases.lanes_max,
                response_timeout: redis.response_timeout,
                scripts: Scripts::new(),
                clock_offset_ms: AtomicI64::new(0),
            }),
        })
    }

    /// The shards, in order.
    pub fn shards(&self) -> impl Iterator<Item = Shard> + use<> {
        (0..self.inner.shards).map(Shard)
    }

    /// The shard that a tenant lives in.
    pub fn shard_of(&self, tenant_id: TenantId) -> Shard {
        let hash = crc32fast::hash(tenant_id.uuid().as_bytes());
        Shard(u16::try_from(hash % u32::from(self.inner.shards)).unwrap_or(0))
    }

    /// How long a lease holds without a heartbeat.
    pub fn lease_ttl(&self) -> Duration {
        self.inner.lease_ttl
    }

    /// Moves the scripts' clock, for tests that do not wait.
    pub fn set_clock_offset(&self, offset: chrono::TimeDelta) {
        self.inner
            .clock_offset_ms
            .store(offset.num_milliseconds(), Ordering::Relaxed);
    }

    fn clock_offset_ms(&self) -> i64 {
        self.inner.clock_offset_ms.load(Ordering::Relaxed)
    }

    fn root(&self, shard: Shard) -> String {
        format!("{}:{{s{}}}:", self.inner.prefix, shard.0)
    }

    fn key(&self, shard: Shard, name: &str) -> String {
        format!("{}:{{s{}}}:{name}", self.inner.prefix, shard.0)
    }

    /// A connection. When Redis stands still the pool tries one idle connection after the other, each with a time limit
    /// of its own: this one is for all of them together.
    async fn connection(&self) -> Result<Connection, Error> {
        match tokio::time::timeout(self.inner.response_timeout, self.inner.pool.get()).await {
            Ok(connection) => Ok(connection?),
            Err(_) => Err(Error::Slow),
        }
    }

    /// Writes a key of no meaning into every shard: a Redis that answers and takes no writes, for it is full or a replica,
    /// dispatches nothing.
    ///
    /// # Errors
    /// When one refuses, or does not answer.
    pub async fn probe(&self) -> Result<(), Error> {
        let mut connection = self.connection().await?;
        for shard in self.shards() {
            let mut set = redis::cmd("SET");
            set.arg(self.key(shard, "probe")).arg(1).arg("PX").arg(1);
            let _written: String = set.query_async(&mut connection).await?;
        }
        Ok(())
    }

    /// The time by Redis's clock, since 1970.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn time(&self) -> Result<Duration, Error> {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(&mut self.link().await?).await?;
        Ok(Duration::from_secs(seconds) + Duration::from_micros(micros))
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("prefix", &self.inner.prefix)
            .field("shards", &self.inner.shards)
            .finish_non_exhaustive()
    }
}

/// A shard: the unit whose keys lie in one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(u16);

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s{}", self.0)
    }
}
