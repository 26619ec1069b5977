//! Tables in which a few rows are looked for among many.

use std::ops::RangeInclusive;
use std::time::Duration;

use common::ids::JobId;
use common::testing::eventually;
use sqlx::PgPool;

/// Repeats a job's row in these states, with ids that follow its own. The planner knows nothing of it, and no vacuum comes, after
/// which an index alone would tell what a test counts reads of.
pub(crate) async fn crowd(pool: &PgPool, like: JobId, states: impl IntoIterator<Item = (&str, RangeInclusive<u32>)>) {
    let mut connection = pool.acquire().await.unwrap();
    let sql = "do $$ declare leaf regclass; begin
                 for leaf in select relid from pg_partition_tree('jobs') where isleaf loop
                   execute format('alter table %s set (autovacuum_enabled = off)', leaf);
                 end loop;
               end $$";
    sqlx::query(sql).execute(&mut *connection).await.unwrap();
    for (state, numbers) in states {
        let (first, last) = numbers.into_inner();
        let sql = format!(
            "insert into jobs (id, tenant_id, kind, queue, class, labels, priority, state, max_attempts, backoff_initial_ms,
                backoff_factor, backoff_max_ms, retry_on, timeout_ms, created_at, queued_at, finished_at, seq, input, metadata)
             select (left(jobs.id::text, 13) || '-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, tenant_id, kind, queue, class,
                labels, priority, '{state}', max_attempts, backoff_initial_ms, backoff_factor, backoff_max_ms, retry_on,
                timeout_ms, created_at, queued_at, case when '{state}' = 'succeeded' then created_at end, 1, input, metadata
             from jobs, generate_series({first}, {last}) n where jobs.id = $1"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(like)
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    for sql in [
        "insert into queued_jobs select tenant_id, queue, class, priority, id from jobs where state = 'queued' on conflict do nothing",
        // What this connection has read is told now, and so not counted later.
        "select pg_stat_force_next_flush()",
    ] {
        sqlx::query(sql).execute(&mut *connection).await.unwrap();
    }
}

/// Lets the planner know what is there.
pub(crate) async fn analyze(pool: &PgPool) {
    sqlx::query("analyze").execute(pool).await.unwrap();
}

/// Rows that Postgres has read from all partitions of `jobs`; it tells them late.
pub(crate) async fn rows_read(pool: &PgPool) -> i64 {
    let sql = "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint from pg_stat_user_tables where relname like 'jobs\\_%'";
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// The same since then, as soon as at least so many are told.
pub(crate) async fn rows_read_since(pool: &PgPool, before: i64, expected: i64) -> i64 {
    eventually(Duration::from_secs(20), "Postgres tells what it read", || async {
        let read = rows_read(pool).await - before;
        (read >= expected).then_some(read)
    })
    .await
}
