//! What is due soon is told when it is committed.

use std::time::Duration;

use chrono::TimeDelta;
use common::job::spec::JobSpec;
use common::job::{Kind, NewJob};
use common::store::wakes::Wake;
use common::testing::TestEnv;
use futures_util::FutureExt;
use sqlx::PgPool;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

fn due_in(env: &TestEnv, delay: TimeDelta) -> NewJob {
    let mut spec = JobSpec::new(Kind::Noop);
    spec.run_at = Some(env.clock.now() + delay);
    env.job(spec, b"{}".to_vec())
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_is_due_soon_wakes_once_a_transaction_and_a_later_one_does_not(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut wakes = env.store.wakes().await.unwrap();

    let mut tx = pool.begin().await.unwrap();
    for _ in 0..3 {
        env.insert(&due_in(&env, TimeDelta::days(1))).await;
        env.insert(&env.noop()).await;
    }
    sqlx::query("notify hothouse_due, 'end'")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    // Words come in the order of the commits: there was none before this.
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap().unwrap();
    assert_eq!(heard, Wake::Everything);

    let soon: Vec<NewJob> = (0..3).map(|_| due_in(&env, TimeDelta::seconds(1))).collect();
    let submission = common::store::insert::Submission {
        tenant_id: env.tenant_id,
        jobs: soon,
        idempotency: None,
    };
    for outcome in env.store.insert(&[submission]).await {
        outcome.unwrap();
    }
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap().unwrap();
    assert_eq!(heard, Wake::Jobs);
    sqlx::query("notify hothouse_due, 'end'").execute(&pool).await.unwrap();
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap().unwrap();
    assert_eq!(heard, Wake::Everything);
    assert!(wakes.next().now_or_never().is_none());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn who_listens_hears_when_its_connection_was_lost(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut wakes = env.store.wakes().await.unwrap();
    let ended: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and query like 'LISTEN%'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(ended, 1);
    // Either it says that it is broken, or that words may be missing.
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap();
    assert!(heard.is_err() || heard.is_ok_and(|wake| wake == Wake::Everything));
}
