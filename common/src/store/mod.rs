//! Postgres: the truth of every job. One file a table; nothing above this module writes SQL.
//!
//! Every change of a job's state names the state and the attempt that it expects, and touches the row or does not;
//! what was not touched is the caller's [`Error::LeaseLost`], never a success.

pub mod agents;
pub mod attempts;
pub mod cancel;
pub mod claim;
pub mod conversations;
pub mod duties;
mod error;
pub mod events;
pub mod fire;
pub mod insert;
pub mod jobs;
pub mod keys;
pub mod leaders;
pub mod list;
pub mod messages;
pub mod partitions;
pub mod promote;
pub mod queues;
pub mod reclaim;
pub mod retention;
mod row;
pub mod schedules;
pub mod settle;
pub mod tenants;
pub mod usage;
pub mod workers;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

pub use error::{Class, Error};

use crate::config::{self, Database};

/// All migrations, in order.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// A handle on the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pool: PgPool,
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
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(database.connections_max)
            .acquire_timeout(database.acquire_timeout)
            .idle_timeout(Duration::from_mins(5))
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    /// A store over a pool that somebody else made.
    pub fn from_pool(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool, for this crate's own modules.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Applies the migrations that are missing. Several processes may call it at once.
    ///
    /// # Errors
    /// When Postgres is away, or the database has migrations that this version does not know.
    pub async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        MIGRATOR.run(&self.pool).await
    }

    /// Asks Postgres for nothing, to know that it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
