//! What a look at recent rows cannot find any more.

use std::time::Duration;

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
