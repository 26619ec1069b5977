//! A job that Postgres refuses to change holds up nobody else's.

use assert_matches::assert_matches;
use common::ids::{JobId, TenantId};
use common::job::{JobState, NewJob};
use common::service::Duty;
use common::testing::TestEnv;
use scheduler::duties::{Reclaim, Redispatch};
use sqlx::{AssertSqlSafe, PgPool};

/// From now on every change of this job is refused as data is.
async fn refuse(pool: &PgPool, id: JobId) {
    let sql = format!(
        "create function refuse() returns trigger language plpgsql as $$
         begin raise 'this job is odd' using errcode = 'untranslatable_character'; end $$;
         create trigger refuse before update on jobs for each row when (old.id = '{id}') execute function refuse()"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// A job, and a later one of another tenant.
async fn two(env: &TestEnv) -> (NewJob, NewJob) {
    let odd = env.noop();
    let other = NewJob {
        tenant_id: TenantId::new(),
        ..env.noop()
    };
    env.enqueue(&odd).await;
    env.enqueue(&other).await;
    (odd, other)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_that_cannot_be_taken_over_leaves_the_others_to_their_takeover(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (odd, other) = two(&env).await;
    assert_eq!(env.worker().claim(2).await.len(), 2);
    refuse(&pool, odd.id).await;
    env.advance(env.queue.lease_ttl());
    let reclaim = Reclaim::new(env.store.clone(), env.queue.clone());
    let report = reclaim.tick(env.clock.now()).await.unwrap();
    assert_eq!((report.changed, report.more), (1, false));
    assert_matches!(env.state(odd.id).await, JobState::Running { .. });
    assert_matches!(env.state(other.id).await, JobState::Queued { .. });
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_that_cannot_be_stopped_leaves_the_others_to_be_stopped(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (odd, other) = two(&env).await;
    // As whoever makes way for another job commits it, and dies before they are told.
    for (job, seconds) in [(&odd, 20), (&other, 10)] {
        sqlx::query("update jobs set cancel_requested_at = $2 where id = $1")
            .bind(job.id)
            .bind(env.clock.now() - chrono::TimeDelta::seconds(seconds))
            .execute(&pool)
            .await
            .unwrap();
    }
    refuse(&pool, odd.id).await;
    let redispatch = Redispatch::new(env.store.clone(), env.queue.clone(), 10_000);
    assert_eq!(redispatch.tick(env.clock.now()).await.unwrap().changed, 1);
    assert_matches!(env.state(odd.id).await, JobState::Queued { .. });
    assert_matches!(env.state(other.id).await, JobState::Cancelled { .. });
}
