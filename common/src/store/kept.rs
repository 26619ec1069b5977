//! Connections that are kept for the statements that run all the time.
//!
//! A pool hands its connections out in turn, and asks each twice whether it lives when it comes back. A statement that
//! runs a thousand times a second then runs in as many processes of Postgres as there are connections, and each finds its
//! caches cold. Here the one that was used last comes first, and is believed while it answers.
//!
//! # Invariants
//! - One whose work was given up, or failed for another reason than its data, is closed: nobody gets it again.
//! - There are never more than so many, besides those of the pool.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use sqlx::{Connection as _, Executor as _, PgConnection, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{BELIEVED, Class, Error, is_alive};

/// Connections for one sort of statements. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pool: PgPool,
    plans: Plans,
    places: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<(PgConnection, Instant)>>>,
}

/// When statements are planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plans {
    /// Each time, as on the connections of the pool.
    EachTime,
    /// Once a connection, whatever their values.
    Once,
    /// The same, for those that walk an index and compare what they find with a list, which may be long.
    OnceBesideList,
}

impl Plans {
    /// SQL that sets a connection up. A plan made while a table was empty must still be right when it is full: rows are found
    /// by their keys, whatever the table's size seems to say.
    const fn settings(self) -> Option<&'static str> {
        match self {
            Self::EachTime => None,
            Self::Once => Some(
                "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_hashjoin = off;
                 set enable_mergejoin = off",
            ),
            // A list is hashed, and an index is read in its order, for only the first rows may be wanted.
            Self::OnceBesideList => Some(
                "set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set enable_nestloop = off;
                 set enable_mergejoin = off; set enable_bitmapscan = off",
            ),
        }
    }
}

/// A connection in somebody's hands. Dropping it without [`Lent::done`] closes it.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    kept: &'a Kept,
    /// The connection itself.
    pub(super) connection: PgConnection,
    /// Given back after the connection, so that whoever waits for it finds that one.
    _place: OwnedSemaphorePermit,
}

impl Kept {
    /// Up to `most` connections, with the options of the pool's own.
    pub(super) fn new(pool: PgPool, most: usize, plans: Plans) -> Self {
        Self {
            pool,
            plans,
            places: Arc::new(Semaphore::new(most)),
            idle: Arc::default(),
        }
    }

    /// The connection that was used last, or a new one. It waits while all are in use.
    ///
    /// # Errors
    /// When Postgres is away.
    pub(super) async fn lend(&self) -> Result<Lent<'_>, Error> {
        let closed = |_closed| sqlx::Error::PoolClosed;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(closed)?;
        let lent = |connection| Lent {
            kept: self,
            connection,
            _place: place,
        };
        while let Some((mut connection, since)) = self.take() {
            if since.elapsed() < BELIEVED || is_alive(&mut connection).await {
                return Ok(lent(connection));
            }
        }
        let mut connection = self.connect().await?;
        if let Some(settings) = self.plans.settings() {
            connection.execute(settings).await?;
        }
        Ok(lent(connection))
    }

    /// A new connection, within the time that the pool gives one of its own. One of the pool's may have been made on another
    /// runtime, whose threads would pass on what Postgres answers.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        if self.pool.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        let limit = self.pool.options().get_acquire_timeout();
        let options = self.pool.connect_options();
        match timeout(limit, PgConnection::connect_with(&options)).await {
            // The pool waits for a Postgres that is about to be there, and may have one left where there is no room for more.
            Ok(Err(error)) if may_pass(&error) => Ok(self.pool.acquire().await?.detach()),
            Ok(made) => made,
            Err(_) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    /// Closes those that nobody uses; the others are closed when they come back.
    pub(super) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn take(&self) -> Option<(PgConnection, Instant)> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

impl Lent<'_> {
    /// Gives it back with what became of its work, unless that speaks against it.
    ///
    /// # Errors
    /// Those of the work.
    pub(super) fn done<T>(self, outcome: Result<T, Error>) -> Result<T, Error> {
        // A statement that was refused has ended, and its transaction with it.
        let is_sound = |error: &Error| error.class() == Class::Data;
        if outcome.as_ref().err().is_none_or(is_sound) && !self.kept.pool.is_closed() {
            let mut idle = self.kept.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push((self.connection, Instant::now()));
        }
        outcome
    }
}

/// Whether a connection failed for a reason that may be gone in a moment: nobody listens, Postgres starts or stops (class
/// 57 of its errors), or it has as many as it takes (53).
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("57") || code.starts_with("53")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn process(connection: &mut PgConnection) -> i32 {
        let sql = "select pg_backend_pid()";
        sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
    }

    async fn used(kept: &Kept) -> i32 {
        let mut lent = kept.lend().await.unwrap();
        let process = process(&mut lent.connection).await;
        lent.done(Ok(process)).unwrap()
    }

    #[sqlx::test]
    async fn the_one_that_was_used_last_comes_first(pool: PgPool) {
        let kept = Kept::new(pool, 2, Plans::Once);
        let (mut one, mut other) = (kept.lend().await.unwrap(), kept.lend().await.unwrap());
        let sql = "select current_setting('plan_cache_mode')";
        let mode: String = sqlx::query_scalar(sql).fetch_one(&mut one.connection).await.unwrap();
        assert_eq!(mode, "force_generic_plan");
        let (first, last) = (process(&mut one.connection).await, process(&mut other.connection).await);
        assert_ne!(first, last);
        one.done(Ok(())).unwrap();
        other.done(Ok(())).unwrap();
        for _ in 0..10 {
            assert_eq!(used(&kept).await, last);
        }
        assert!(kept.places.available_permits() == 2 && kept.idle.lock().unwrap().len() == 2);
    }

    #[sqlx::test]
    async fn refused_data_does_not_speak_against_a_connection_and_all_else_does(pool: PgPool) {
        let kept = Kept::new(pool.clone(), 1, Plans::EachTime);
        let first = used(&kept).await;
        let mut lent = kept.lend().await.unwrap();
        let refused = sqlx::query("select 1 / 0").execute(&mut lent.connection).await;
        lent.done(refused.map_err(Error::from)).unwrap_err();
        assert_eq!(used(&kept).await, first);

        // Given up in the middle: what it holds is never seen again.
        let mut lent = kept.lend().await.unwrap();
        sqlx::query("begin").execute(&mut lent.connection).await.unwrap();
        drop(lent);
        let second = used(&kept).await;
        assert_ne!(second, first);

        // Ended while nobody used it for long enough to be asked whether it lives.
        let ended: bool = sqlx::query_scalar("select pg_terminate_backend($1, 5000)")
            .bind(second)
            .fetch_one(&pool)
            .await
            .unwrap();
        assert!(ended);
        for (_, since) in kept.idle.lock().unwrap().iter_mut() {
            *since -= BELIEVED;
        }
        assert_ne!(used(&kept).await, second);

        // Ended a moment ago: whoever finds out is told, and nobody else.
        let third = used(&kept).await;
        sqlx::query("select pg_terminate_backend($1, 5000)")
            .bind(third)
            .execute(&pool)
            .await
            .unwrap();
        let mut lent = kept.lend().await.unwrap();
        let outcome = sqlx::query("select 1").execute(&mut lent.connection).await;
        assert_eq!(
            lent.done(outcome.map_err(Error::from)).unwrap_err().class(),
            Class::Transient
        );
        assert_ne!(used(&kept).await, third);
    }

    #[sqlx::test]
    async fn nothing_is_kept_or_made_once_the_pool_is_closed(pool: PgPool) {
        let kept = Kept::new(pool.clone(), 2, Plans::EachTime);
        let mut lent = kept.lend().await.unwrap();
        kept.close();
        pool.close().await;
        // What is under way is finished.
        process(&mut lent.connection).await;
        lent.done(Ok(())).unwrap();
        assert!(kept.idle.lock().unwrap().is_empty());
        assert!(kept.lend().await.is_err());
    }
}
