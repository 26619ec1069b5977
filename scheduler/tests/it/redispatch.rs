//! What a look at recent rows cannot find any more.

use std::time::Duration;

use common::ids::JobId;
use common::job::NewJob;
use common::job::decision::Decision;
use common::service::Duty;
use common::store::insert::Submission;
use common::testing::{TestEnv, failure, leases};
use scheduler::duties::Redispatch;
use sqlx::PgPool;

fn redispatch(env: &TestEnv) -> Redispatch {
    Redispatch::new(env.store.clone(), env.queue.clone(), leases().dispatched_max)
}

async fn tick(env: &TestEnv, redispatch: &Redispatch) -> u64 {
    redispatch.tick(env.clock.now()).await.unwrap().changed
}

/// Redis was away for long, and then the leader died as well.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_new_leader_looks_at_all_rows_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..4_500).map(|_| env.noop()).collect();
    let submission = Submission {
        tenant_id: env.tenant_id,
        jobs,
        idempotency: None,
    };
    env.store.insert(&[submission]).await.pop().unwrap().unwrap();
    env.advance(Duration::from_hours(1));
    let redispatch = redispatch(&env);
    let mut found = 0;
    for _page in 0..3 {
        found += tick(&env, &redispatch).await;
    }
    assert_eq!(found, 4_500);
}

/// A retry is older than its job's id tells, and was queued when nobody could say so.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_leader_looks_at_all_rows_when_its_last_look_is_long_ago(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (redispatch, worker) = (redispatch(&env), env.worker());
    tick(&env, &redispatch).await;
    env.enqueue(&env.noop()).await;
    let claimed = worker.one().await;
    assert!(
        worker
            .settle(&claimed, Decision::RetryAt(env.clock.now(), failure()))
            .await
    );
    env.store.promote(env.clock.now(), 10).await.unwrap();
    env.advance(Duration::from_secs(30));
    assert_eq!(tick(&env, &redispatch).await, 1);
    assert_eq!(worker.one().await.job.attempt, 2);
}

/// A row that is committed a while after its id was made, by a slow Postgres, and that nobody said to Redis.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_row_that_is_committed_late_is_found_by_the_next_look(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let redispatch = redispatch(&env);
    for _look in 0..2 {
        assert_eq!(tick(&env, &redispatch).await, 0);
        env.advance(Duration::from_secs(1));
    }
    let mut job = env.noop();
    let made_at = u64::try_from(env.clock.now().timestamp_millis()).unwrap();
    job.id = JobId(uuid::Builder::from_unix_timestamp_millis(made_at, &[0; 10]).into_uuid());
    env.advance(Duration::from_millis(1_400));
    assert_eq!(tick(&env, &redispatch).await, 0);
    env.insert(&job).await;
    env.advance(Duration::from_secs(1));
    assert_eq!(tick(&env, &redispatch).await, 1);
    assert_eq!(env.worker().one().await.job.id, job.id);
}

/// A row of the index that was left behind, as by a server that was set back.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_look_at_all_rows_forgets_those_of_jobs_that_have_ended(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let worker = env.worker();
    env.enqueue(&env.noop()).await;
    let ended = worker.one().await;
    assert!(worker.settle(&ended, Decision::Succeed).await);
    env.enqueue(&env.noop()).await;
    let running = worker.one().await;
    env.enqueue(&env.noop()).await;
    let sql = "insert into queued_jobs (tenant_id, queue, class, priority, id)
               select tenant_id, queue, class, priority, id from jobs where id = any($1) on conflict do nothing";
    let left = [ended.job.id, running.job.id];
    sqlx::query(sql).bind(left).execute(&pool).await.unwrap();

    env.advance(Duration::from_hours(1));
    assert_eq!(tick(&env, &redispatch(&env)).await, 1);
    let sql = "select count(*) filter (where id = $1), count(*) from queued_jobs";
    let indexed: (i64, i64) = sqlx::query_as(sql).bind(ended.job.id).fetch_one(&pool).await.unwrap();
    assert_eq!(indexed.0, 0);
    assert!(indexed.1 > 0);
}
