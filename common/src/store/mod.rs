//! Postgres: the truth of every job. One file a table; nothing above this module writes SQL.
//!
//! Every change of a job's state names the state and the attempt that it expects, and touches the row or does not;
//! what was not touched is the caller's [`Error::LeaseLost`], never a success.

pub mod admit;
pub mod agents;
mod ahead;
pub mod approvals;
pub mod attempts;
pub mod backlog;
pub mod branch;
pub mod budgets;
pub mod bulk;
pub mod cancel;
pub mod claim;
pub mod conversations;
mod days;
pub mod duties;
pub mod egress;
pub mod environments;
mod error;
pub mod events;
pub mod fire;
pub mod forget;
pub mod idempotency;
mod index;
pub mod insert;
pub mod jobs;
pub mod journal;
mod kept;
pub mod keys;
pub mod leaders;
pub mod limits;
pub mod list;
pub mod messages;
mod next_turn;
pub mod outcomes;
pub mod partitions;
pub mod promote;
pub mod queues;
pub mod recent;
pub mod reclaim;
pub mod retention;
mod row;
pub mod sandboxes;
pub mod schedules;
pub mod search;
pub mod settle;
pub mod statistics;
pub mod steering;
pub mod subjects;
pub mod take_turn;
pub mod tenants;
mod timed;
mod transaction;
mod turns;
pub mod usage;
pub mod wait;
pub mod wakes;
mod windows;
pub mod workers;
pub mod workspaces;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
pub use sqlx::migrate::MigrateError;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection as _, PgConnection, PgPool};

use days::{Days, Table};
pub use error::{Class, Error};
use kept::{Kept, Plans};
use timed::Timed;

use crate::config::{self, Database};

/// All migrations, in order.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// A handle on the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Timed,
    /// For accepting jobs: what an insert writes lies in no partition before it is there, so one plan serves all.
    inserting: Kept,
    /// For claims and ends of jobs of one day, which name its partition.
    moving: Kept,
    /// For those of jobs of several days: a generic plan cannot know which partitions an array of ids lies in, and planning
    /// costs less than scanning all.
    searching: Kept,
    /// For looking up one row by its key: a job, whose partition is found when its id is known, or who calls.
    reading: Kept,
    /// For what a turn writes and reads, by the ids of its conversation and job.
    talking: Kept,
    /// For the looks of each second at rows that Redis may not know, which take longer to plan than to do where little is queued.
    looking: Kept,
    clock_offset_us: Arc<AtomicI64>,
    days: Arc<Days>,
}

impl Store {
    /// Opens a pool. Connections are made when they are needed, so this works while Postgres is away.
    ///
    /// # Errors
    /// When the URL is not set, or cannot be read.
    pub fn open(database: &Database) -> Result<Self, config::Error> {
        let url = database.resolved_url()?;
        let options: PgConnectOptions = url
            .expose()
            .parse()
            .map_err(|_hidden: sqlx::Error| config::Error::Invalid("database.url is not a Postgres URL".to_owned()))?;
        // A generic plan cannot know which partitions an array of ids lies in; planning costs less than scanning all.
        let options = options.options([
            ("plan_cache_mode", "force_custom_plan"),
            ("application_name", "hothouse"),
            // What is asked all the time is short, and starting a helper process costs more than it; what is long must not take
            // the processors from that.
            ("max_parallel_workers_per_gather", "0"),
        ]);
        // A process that died without a word must not hold its rows' locks until the server's TCP gives up.
        let idle_max_ms = database.query_timeout.as_millis().to_string();
        let options = options.options([
            ("idle_in_transaction_session_timeout", idle_max_ms.as_str()),
            ("tcp_keepalives_idle", "15"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(database.connections_max)
            .acquire_timeout(database.acquire_timeout)
            .idle_timeout(Duration::from_mins(5))
            // The same test, with a time limit: it goes on to the next connection at once.
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move { Ok(meta.idle_for < BELIEVED || is_alive(connection).await) })
            })
            .after_release(|connection, _| Box::pin(async move { release(connection).await }))
            .connect_lazy_with(options);
        Ok(Self::over(pool, database.query_timeout))
    }

    /// A store over a pool that somebody else made.
    pub fn from_pool(pool: PgPool) -> Self {
        Self::over(pool, Duration::from_secs(15))
    }

    fn over(pool: PgPool, limit: Duration) -> Self {
        Self {
            inserting: Kept::new(pool.clone(), INSERTING_MAX, Plans::Once),
            moving: Kept::new(pool.clone(), MOVING_MAX, Plans::Once),
            searching: Kept::new(pool.clone(), MOVING_MAX, Plans::EachTime),
            reading: Kept::new(pool.clone(), READING_MAX, Plans::Once),
            talking: Kept::new(pool.clone(), TALKING_MAX, Plans::Once),
            looking: Kept::new(pool.clone(), 1, Plans::OnceBesideList),
            pool: Timed::new(pool, limit),
            clock_offset_us: Arc::default(),
            days: Arc::default(),
        }
    }

    /// Moves the clock of Postgres, as leading and firing see it through this handle and its clones: for tests that do
    /// not wait, and for those in which the clock jumps.
    pub fn set_clock_offset(&self, offset: TimeDelta) {
        self.clock_offset_us
            .store(offset.num_microseconds().unwrap_or(0), Ordering::Relaxed);
    }

    /// How far the clock of Postgres is moved, microseconds.
    fn clock_offset_us(&self) -> i64 {
        self.clock_offset_us.load(Ordering::Relaxed)
    }

    /// The pool, for this crate's own modules.
    pub(crate) fn pool(&self) -> &Timed {
        &self.pool
    }

    /// Connections for statements that insert jobs and nothing else.
    fn inserting(&self) -> &Kept {
        &self.inserting
    }

    /// Connections for statements that claim or end jobs of a table and do nothing else.
    fn moving(&self, table: &Table) -> &Kept {
        match table {
            Table::Day(_) => &self.moving,
            Table::Jobs => &self.searching,
        }
    }

    /// Connections for statements that look up one row by its key.
    fn reading(&self) -> &Kept {
        &self.reading
    }

    /// Connections for statements about one turn.
    fn talking(&self) -> &Kept {
        &self.talking
    }

    /// A connection for looks at rows that Redis may not know.
    fn looking(&self) -> &Kept {
        &self.looking
    }

    /// Which daily partitions there are.
    fn days(&self) -> &Days {
        &self.days
    }

    /// Runs a transaction, or several queries, within the time limit of one. It is boxed at once: a query is kilobytes of
    /// state, which whoever may make one would otherwise carry from the beginning.
    fn within<T>(&self, work: impl Future<Output = Result<T, Error>>) -> impl Future<Output = Result<T, Error>> {
        let (limit, work) = (self.pool.limit(), Box::pin(work));
        async move {
            match tokio::time::timeout(limit, work).await {
                Ok(done) => done,
                Err(elapsed) => Err(elapsed.into()),
            }
        }
    }

    /// Runs one statement on a kept connection, within the time limit.
    async fn on<T>(
        &self,
        kept: &Kept,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        self.within(async {
            let mut lent = kept.lend().await?;
            let outcome = statement(&mut lent.connection).await;
            lent.done(outcome.map_err(Error::from))
        })
        .await
    }

    /// Applies the migrations that are missing. Several processes may call it at once.
    ///
    /// # Errors
    /// When Postgres is away, or the database has migrations that this version does not know.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        MIGRATOR.run(self.pool.untimed()).await
    }

    /// Asks Postgres for nothing, to know that it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query("select 1").execute(self.pool()).await?;
        Ok(())
    }

    /// Whether the database has every migration that this version knows.
    ///
    /// # Errors
    /// When Postgres is away, or no migration ran at all.
    pub async fn is_migrated(&self) -> Result<bool, Error> {
        let known: Vec<i64> = MIGRATOR.iter().map(|migration| migration.version).collect();
        let applied: i64 =
            sqlx::query_scalar("select count(*) from _sqlx_migrations where version = any($1) and success")
                .bind(&known)
                .fetch_one(self.pool())
                .await?;
        Ok(usize::try_from(applied).is_ok_and(|applied| applied == known.len()))
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.inserting.close();
        self.moving.close();
        self.searching.close();
        self.reading.close();
        self.talking.close();
        self.looking.close();
        self.pool.untimed().close().await;
    }
}

/// Connections that are kept for inserts: two of lone jobs and two of batches are under way at once.
const INSERTING_MAX: usize = 4;

/// Connections that are kept for claims and ends, of one day and of several.
const MOVING_MAX: usize = 4;

/// Connections that are kept for looking up one row.
const READING_MAX: usize = 4;

/// Connections that are kept for turns.
const TALKING_MAX: usize = 8;

/// How long a connection that was just used is believed to live: asking it is a round trip before each query.
const BELIEVED: Duration = Duration::from_secs(1);

/// How long a connection without a query may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// Tests a connection that was given back. The error closes it at once, without a goodbye that nobody may hear: where a
/// query was given up the other end may be dead, and without a limit the connection would keep its place in the pool until TCP
/// gives up too.
async fn release(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match tokio::time::timeout(PING_TIMEOUT, connection.ping()).await {
        Ok(pong) => pong.map(|()| true),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

async fn is_alive(connection: &mut PgConnection) -> bool {
    matches!(tokio::time::timeout(PING_TIMEOUT, connection.ping()).await, Ok(Ok(())))
}
