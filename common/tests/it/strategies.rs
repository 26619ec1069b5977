//! The strategies of concurrency keys, decided in Postgres when a job is accepted.

#![expect(clippy::panic, reason = "a test that cannot go on fails")]

use chrono::TimeDelta;
use common::job::{Concurrency, FailureCode, JobState, NewJob, Strategy};
use common::store::admit::Decided;
use common::store::insert::{Accepted, Idempotency, Submission};
use common::testing::TestEnv;
use sqlx::PgPool;

fn keyed(env: &TestEnv, strategy: Strategy, limit: u32) -> NewJob {
    let mut job = env.noop();
    job.spec.concurrency = Some(Concurrency {
        key: "key".to_owned(),
        limit,
        strategy,
    });
    job
}

async fn submit(env: &TestEnv, jobs: &[NewJob], key: Option<&str>) -> Accepted {
    let submission = Submission {
        tenant_id: env.tenant_id,
        jobs: jobs.to_vec(),
        idempotency: key.map(|key| Idempotency {
            key: key.to_owned(),
            fingerprint: [7; 32],
        }),
    };
    env.store.insert(&[submission]).await.pop().unwrap().unwrap()
}

fn decided(accepted: Accepted) -> Decided {
    match accepted {
        Accepted::Inserted => Decided::default(),
        Accepted::Decided(decided) => decided,
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn reject_lets_in_as_many_as_the_limit_and_again_when_one_has_ended(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let first = keyed(&env, Strategy::Reject, 2);
    assert_eq!(
        decided(submit(&env, std::slice::from_ref(&first), None).await),
        Decided::default()
    );
    // In one batch, in its order; the one that is refused leaves no row.
    let more = [keyed(&env, Strategy::Reject, 2), keyed(&env, Strategy::Reject, 2)];
    assert_eq!(decided(submit(&env, &more, None).await).rejected, [more[1].id]);
    assert!(env.store.jobs(&[more[1].id]).await.unwrap().is_empty());
    env.store
        .cancel(env.tenant_id, first.id, env.clock.now())
        .await
        .unwrap();
    let last = keyed(&env, Strategy::Reject, 2);
    assert_eq!(decided(submit(&env, &[last], None).await), Decided::default());
    // Another tenant's key is another key.
    let other = NewJob {
        tenant_id: common::ids::TenantId::new(),
        ..keyed(&env, Strategy::Reject, 1)
    };
    assert_eq!(decided(submit(&env, &[other], None).await), Decided::default());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn of_many_that_submit_at_once_exactly_the_limit_comes_in(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let submissions = (0..24).map(|_| async {
        let job = keyed(&env, Strategy::Reject, 3);
        decided(submit(&env, &[job], None).await).rejected.len()
    });
    let rejected: usize = futures_util::future::join_all(submissions).await.into_iter().sum();
    assert_eq!(rejected, 21);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_refused_request_may_be_made_again_with_its_key(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let first = keyed(&env, Strategy::Reject, 1);
    submit(&env, std::slice::from_ref(&first), None).await;
    let second = keyed(&env, Strategy::Reject, 1);
    assert_eq!(
        decided(submit(&env, std::slice::from_ref(&second), Some("k")).await).rejected,
        [second.id]
    );
    env.store
        .cancel(env.tenant_id, first.id, env.clock.now())
        .await
        .unwrap();
    assert_eq!(
        decided(submit(&env, std::slice::from_ref(&second), Some("k")).await),
        Decided::default()
    );
    assert!(matches!(
        submit(&env, &[second], Some("k")).await,
        Accepted::Repeated(_)
    ));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn cancel_running_ends_the_holder_and_takes_its_place(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (first, second, third) = (
        keyed(&env, Strategy::CancelRunning, 1),
        keyed(&env, Strategy::CancelRunning, 1),
        keyed(&env, Strategy::CancelRunning, 1),
    );
    env.enqueue(&first).await;
    let held = worker.one().await;
    let gone = decided(submit(&env, std::slice::from_ref(&second), None).await).superseded;
    assert_eq!(gone, [(env.tenant_id, first.id)]);
    // It is committed: whoever must stop it may die now.
    assert_eq!(
        env.store
            .cancelling(env.clock.now() + TimeDelta::seconds(1), 10)
            .await
            .unwrap(),
        gone
    );
    env.queue
        .dispatch(&[common::queue::Dispatch::from_new(&second)])
        .await
        .unwrap();
    assert!(worker.claim(5).await.is_empty());
    // A third one leaves the second no turn.
    let gone = decided(submit(&env, std::slice::from_ref(&third), None).await).superseded;
    assert_eq!(gone, [(env.tenant_id, second.id)]);
    let job = env
        .store
        .cancel(env.tenant_id, second.id, env.clock.now())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(job.state, JobState::Cancelled { .. }));
    env.queue.cancel(env.tenant_id, second.id, job.seq, true).await.unwrap();
    env.queue
        .dispatch(&[common::queue::Dispatch::from_new(&third)])
        .await
        .unwrap();
    assert!(worker.settle(&held, common::job::decision::Decision::Cancel).await);
    assert_eq!(common::testing::ids(&worker.claim(5).await), [third.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_scheduled_job_decides_when_its_time_has_come(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let later = |strategy| {
        let mut job = keyed(&env, strategy, 1);
        job.spec.run_at = Some(env.clock.now() + TimeDelta::seconds(60));
        job
    };
    let (late, latest) = (later(Strategy::Reject), later(Strategy::CancelRunning));
    // Neither has a say now.
    let now = keyed(&env, Strategy::Reject, 1);
    assert_eq!(
        decided(submit(&env, &[late.clone(), latest.clone()], None).await),
        Decided::default()
    );
    assert_eq!(
        decided(submit(&env, std::slice::from_ref(&now), None).await),
        Decided::default()
    );
    env.advance(std::time::Duration::from_mins(1));
    let promoted = env.store.promote(env.clock.now(), 10).await.unwrap();
    assert_eq!(promoted.len(), 2);
    for job in &promoted {
        let decided = env.store.admit_promoted(job, env.clock.now()).await.unwrap();
        if job.id == late.id {
            assert_eq!(decided.rejected, [late.id]);
        } else {
            assert!(decided.superseded.contains(&(env.tenant_id, now.id)), "{decided:?}");
        }
    }
    let row = env.row(late.id).await;
    assert_eq!(row.error.unwrap().code, FailureCode::ConcurrencyLimit);
}
