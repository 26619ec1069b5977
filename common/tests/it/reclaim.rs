//! Jobs whose worker is gone.

use std::time::Duration;

use assert_matches::assert_matches;
use common::job::decision::{ALONE_AFTER, LOSSES_MAX};
use common::job::{FailureCode, JobState};
use common::queue::{Mode, Want};
use common::store::workers::Worker;
use common::testing::{TestEnv, ids, light};
use sqlx::PgPool;

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_whose_worker_died_is_run_by_another(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let (dead, live) = (env.worker(), env.worker());
    let old = dead.one().await;
    env.advance(env.queue.lease_ttl().saturating_sub(Duration::from_secs(1)));
    assert!(env.reclaim().await.is_empty());
    env.advance(Duration::from_secs(1));
    let taken = env.reclaim().await;
    assert_eq!((taken[0].losses, taken[0].failures), (1, 0));
    let claimed = live.one().await;
    assert_eq!((claimed.job.id, claimed.job.attempt), (job.id, 2));
    assert!(!dead.succeed(&old).await);
    assert!(live.succeed(&claimed).await);
    let outcomes: Vec<String> = env
        .store
        .attempts(job.id)
        .await
        .unwrap()
        .into_iter()
        .map(|attempt| attempt.outcome)
        .collect();
    assert_eq!(outcomes, ["lost", "succeeded"]);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_kills_its_workers_is_poisoned(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    for loss in 1..=LOSSES_MAX {
        let want = Want {
            mode: if loss > ALONE_AFTER { Mode::Alone } else { Mode::Busy },
            ..light(1)
        };
        assert_eq!(ids(&env.worker().claim_as(&want).await), [job.id]);
        env.advance(env.queue.lease_ttl());
        assert_eq!(env.reclaim().await[0].losses, loss);
    }
    let row = env.row(job.id).await;
    assert_matches!(row.state, JobState::Failed { .. });
    assert_eq!(row.error.unwrap().code, FailureCode::Poisoned);
    assert_eq!(env.store.attempts(job.id).await.unwrap().len(), 3);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
    let names: Vec<_> = env
        .events(env.tenant_id, job.id, 100)
        .await
        .into_iter()
        .map(|event| event.body.name())
        .collect();
    assert_eq!(names.iter().filter(|name| **name == "started").count(), 3, "{names:?}");
    assert_eq!(names.last(), Some(&"failed"));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_lost_job_that_somebody_cancelled_is_cancelled(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    env.worker().one().await;
    let running = env
        .store
        .cancel(env.tenant_id, job.id, env.clock.now())
        .await
        .unwrap()
        .unwrap();
    assert_matches!(running.state, JobState::Running { .. });
    env.queue
        .cancel(env.tenant_id, job.id, running.seq, false)
        .await
        .unwrap();
    env.advance(env.queue.lease_ttl());
    env.reclaim().await;
    assert_matches!(env.state(job.id).await, JobState::Cancelled { .. });
    let events = env.events(env.tenant_id, job.id, 100).await;
    assert_eq!(
        events.iter().filter(|event| event.body.name() == "started").count(),
        1,
        "{events:?}"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_worker_that_says_in_postgres_that_it_lives_keeps_its_jobs(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let row = Worker {
        id: worker.id,
        name: "test".to_owned(),
        version: "0".to_owned(),
        slots: std::collections::BTreeMap::new(),
        labels: Vec::new(),
        queues: Vec::new(),
        driver: "none".to_owned(),
        started_at: env.clock.now(),
    };
    env.store.register_worker(&row).await.unwrap();
    env.enqueue(&env.noop()).await;
    let claimed = worker.one().await;
    env.advance(env.queue.lease_ttl());
    let until = env.clock.now() + chrono::TimeDelta::seconds(6);
    env.store.worker_alive_until(worker.id, until).await.unwrap();
    assert!(env.reclaim().await.is_empty());
    assert!(worker.register(&claimed).await);
    // And when it says so no more, the job goes elsewhere.
    env.advance(Duration::from_secs(7));
    assert_eq!(env.reclaim().await.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_was_never_confirmed_comes_back(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let claims = env.worker().take(&light(1)).await.unwrap();
    assert_eq!(claims.len(), 1);
    env.advance(env.queue.lease_ttl());
    assert!(env.reclaim().await.is_empty());
    let claimed = env.worker().one().await;
    assert_eq!(
        (claimed.job.id, claimed.job.attempt, claimed.job.losses),
        (job.id, 1, 0)
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_takeover_is_decided_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    env.enqueue(&env.noop()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    let reclaim = || env.store.reclaim(claimed.job.id, 1, &[], false, env.clock.now());
    let (one, other, settled) = tokio::join!(reclaim(), reclaim(), worker.succeed(&claimed));
    let taken = usize::from(one.unwrap().is_some()) + usize::from(other.unwrap().is_some());
    assert_eq!(taken + usize::from(settled), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_is_not_to_run_twice_fails_with_its_worker(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mut job = env.noop();
    job.spec.retry_on = vec!["!worker_lost".to_owned()];
    env.enqueue(&job).await;
    let dead = env.worker();
    let held = dead.one().await;
    env.advance(env.queue.lease_ttl());
    assert_eq!(env.reclaim().await[0].losses, 1);
    let row = env.row(job.id).await;
    assert_matches!(row.state, JobState::Failed { .. });
    assert_eq!(row.error.unwrap().code, FailureCode::WorkerLost);
    assert!(!dead.succeed(&held).await, "what it comes back with is refused");
    assert_eq!(ids(&env.worker().claim(1).await), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}
