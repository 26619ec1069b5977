//! What Postgres refuses in a job's row, whoever writes it.

use common::testing::TestEnv;
use sqlx::PgPool;

/// Changes of a queued job that leave it with what its state excludes, without what it needs, or with a value that is none.
const REFUSED: [&str; 34] = [
    "state = 'unknown'",
    "queued_at = null",
    "due_at = now()",
    "finished_at = now()",
    "state = 'scheduled'",
    "state = 'scheduled', due_at = now(), finished_at = now()",
    "state = 'retrying'",
    "state = 'retrying', due_at = now(), finished_at = now()",
    "state = 'running', worker_id = id, started_at = now()",
    "state = 'running', worker_id = id, attempt = 1",
    "state = 'running', started_at = now(), attempt = 1",
    "state = 'running', worker_id = id, started_at = now(), attempt = 1, due_at = now()",
    "state = 'waiting'",
    "state = 'waiting', waits_for = '{}', finished_at = now()",
    "state = 'succeeded'",
    "state = 'succeeded', finished_at = now(), error_code = 'x'",
    "state = 'failed', finished_at = now()",
    "state = 'cancelled'",
    "state = 'cancelled', finished_at = now(), due_at = now()",
    "kind = 'unknown'",
    "priority = 10",
    "attempt = -1",
    "failures = -1",
    "losses = -1",
    "max_attempts = 101",
    "max_attempts = 0",
    "timeout_ms = 0",
    "seq = 0",
    "concurrency_limit = 0",
    "concurrency_strategy = 'unknown'",
    "rate_limit = 1",
    "rate_key = 'k', rate_limit = 0, rate_window_ms = 1",
    "rate_key = 'k', rate_limit = 1, rate_window_ms = 0",
    "woken_by = 'unknown'",
];

/// Changes of a queued job that fit.
const ACCEPTED: [&str; 9] = [
    "state = 'scheduled', due_at = now()",
    "state = 'retrying', due_at = now()",
    "state = 'running', worker_id = id, started_at = now(), attempt = 1",
    "state = 'waiting', waits_for = '{}'",
    "state = 'waiting', waits_for = '{}', due_at = now()",
    "state = 'succeeded', finished_at = now()",
    "state = 'failed', finished_at = now(), error_code = 'x'",
    "state = 'cancelled', finished_at = now()",
    "rate_key = 'k', rate_limit = 1, rate_window_ms = 1",
];

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_row_that_does_not_fit_its_state_is_refused(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let job = env.noop();
    env.insert(&job).await;
    let change = async |change: &str| {
        let mut tx = pool.begin().await.unwrap();
        let sql = format!("update jobs set {change} where id = $1");
        let changed = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(job.id)
            .execute(&mut *tx)
            .await;
        tx.rollback().await.unwrap();
        changed
    };

    for accepted in ACCEPTED {
        assert_eq!(change(accepted).await.unwrap().rows_affected(), 1, "{accepted}");
    }
    for refused in REFUSED {
        let error = change(refused).await.expect_err(refused);
        let is_check = error
            .as_database_error()
            .is_some_and(sqlx::error::DatabaseError::is_check_violation);
        assert!(is_check, "{refused}: {error}");
    }
}
