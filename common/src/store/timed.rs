//! The pool, with a time limit for everything that is asked of it.
//!
//! Where the other end of a connection died without a word, TCP alone would try for a quarter of an hour, and the caller
//! with it. A query that takes too long is an error like that of a Postgres that is away; its connection is tested,
//! again within a limit, before anybody else gets it: see [`super::Store::open`].

use std::time::Duration;

use either::Either;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Error, Execute, Executor, PgPool, Postgres, SqlStr};
use tokio::time::{Instant, timeout, timeout_at};

use super::transaction::Transaction;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pool: PgPool,
    limit: Duration,
}

impl Timed {
    pub(super) const fn new(pool: PgPool, limit: Duration) -> Self {
        Self { pool, limit }
    }

    /// The longest that a query may take.
    pub(super) const fn limit(&self) -> Duration {
        self.limit
    }

    /// The pool itself.
    pub(super) const fn untimed(&self) -> &PgPool {
        &self.pool
    }

    /// A connection, of which only its acquisition is limited.
    pub(super) async fn acquire(&self) -> Result<PoolConnection<Postgres>, Error> {
        self.pool.acquire().await
    }

    /// Begins a transaction whose statements are planned once for each connection, whatever their values. Where a statement
    /// must look into every partition anyway, as those about the jobs of a conversation must, planning it anew for each of
    /// them takes longer than all else that a turn waits for.
    pub(super) async fn begin_planned(&self) -> Result<Transaction, Error> {
        self.begin_with("begin; set local plan_cache_mode = force_generic_plan")
            .await
    }

    /// Begins a transaction. What it does is limited by [`super::Store::within`].
    pub(super) async fn begin(&self) -> Result<Transaction, Error> {
        self.begin_with("begin").await
    }

    async fn begin_with(&self, statement: &'static str) -> Result<Transaction, Error> {
        let begun = async { Transaction::begin(self.pool.acquire().await?, statement).await };
        timeout(self.limit, begun).await.unwrap_or(Err(Error::PoolTimedOut))
    }
}

impl<'p> Executor<'p> for &'p Timed {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let deadline = Instant::now() + self.limit;
        let rows = (&self.pool).fetch_many(query);
        futures_util::stream::unfold(Some(rows), move |rows| async move {
            let mut rows = rows?;
            match timeout_at(deadline, rows.next()).await {
                Ok(row) => Some((row?, Some(rows))),
                Err(_) => Some((Err(Error::PoolTimedOut), None)),
            }
        })
        .boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let row = timeout(self.limit, (&self.pool).fetch_optional(query));
        Box::pin(async move { row.await.unwrap_or(Err(Error::PoolTimedOut)) })
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        (&self.pool).prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        (&self.pool).describe(sql)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;
    use sqlx::ConnectOptions as _;

    use super::super::Store;
    use super::*;
    use crate::config::{Database, Secret};
    use sqlx::PgConnection;

    /// A store with one connection.
    fn lone(pool: &PgPool) -> Store {
        Store::open(&Database {
            url: Secret::from(pool.connect_options().to_url_lossy().to_string()),
            url_file: None,
            connections_max: 1,
            acquire_timeout: Duration::from_secs(10),
            query_timeout: Duration::from_secs(10),
        })
        .unwrap()
    }

    /// Gives a transaction up while Postgres is asked to begin it.
    async fn give_up(pool: &Timed, begin: impl AsyncFn(&Timed) -> Result<Transaction, Error>) {
        loop {
            sqlx::query("select 1").execute(pool).await.unwrap();
            while pool.untimed().num_idle() == 0 {
                tokio::task::yield_now().await;
            }
            // The answer may be there by the time that it is looked for.
            if poll!(pin!(begin(pool))).is_pending() {
                return;
            }
        }
    }

    #[sqlx::test]
    async fn what_is_written_after_a_beginning_that_was_given_up_stays_written(pool: PgPool) {
        sqlx::query("create table written (n int)")
            .execute(&pool)
            .await
            .unwrap();
        for planned in [false, true] {
            let store = lone(&pool);
            if planned {
                give_up(store.pool(), Timed::begin_planned).await;
            } else {
                give_up(store.pool(), Timed::begin).await;
            }
            sqlx::query("insert into written values (1)")
                .execute(store.pool())
                .await
                .unwrap();
            store.close().await;
        }
        let written: i64 = sqlx::query_scalar("select count(*) from written")
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(written, 2);
    }

    #[sqlx::test]
    async fn what_is_not_committed_is_undone_and_its_connection_used_again(pool: PgPool) {
        sqlx::query("create table written (n int)")
            .execute(&pool)
            .await
            .unwrap();
        let store = lone(&pool);
        let process = async |connection: &mut PgConnection| -> i32 {
            let sql = "select pg_backend_pid()";
            sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
        };
        let insert = "insert into written values (1)";

        let mut committed = store.pool().begin().await.unwrap();
        let first = process(&mut committed).await;
        sqlx::query(insert).execute(&mut *committed).await.unwrap();
        committed.commit().await.unwrap();

        let mut dropped = store.pool().begin().await.unwrap();
        assert_eq!(process(&mut dropped).await, first);
        sqlx::query(insert).execute(&mut *dropped).await.unwrap();
        drop(dropped);

        // Given up while a statement is under way.
        let mut given_up = store.pool().begin().await.unwrap();
        assert_eq!(process(&mut given_up).await, first);
        sqlx::query(insert).execute(&mut *given_up).await.unwrap();
        assert!(poll!(pin!(sqlx::query("select pg_sleep(0.05)").execute(&mut *given_up))).is_pending());
        drop(given_up);

        // One that failed, which no commit can save.
        let mut failed = store.pool().begin().await.unwrap();
        assert_eq!(process(&mut failed).await, first);
        sqlx::query(insert).execute(&mut *failed).await.unwrap();
        sqlx::query("select 1 / 0").execute(&mut *failed).await.unwrap_err();
        drop(failed);

        let written: i64 = sqlx::query_scalar("select count(*) from written")
            .fetch_one(store.pool())
            .await
            .unwrap();
        assert_eq!(written, 1);
        let mut last = store.pool().begin().await.unwrap();
        assert_eq!(process(&mut last).await, first);
    }
}
