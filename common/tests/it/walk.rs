//! The whole path of a job, and that nothing of it is left.

use assert_matches::assert_matches;
use common::job::JobState;
use common::job::decision::Decision;
use common::job::event::EventBody;
use common::queue::{Beat, Dispatch, Dispatched, Generation};
use common::testing::{TestEnv, failure, ids};
use sqlx::PgPool;

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_goes_through_everything_and_leaves_no_key(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, worker) = (env.noop(), env.worker());
    env.insert(&job).await;
    assert_matches!(env.state(job.id).await, JobState::Queued { .. });
    assert_eq!(
        env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap(),
        [Dispatched::Added]
    );

    let claimed = worker.one().await;
    assert_eq!(
        (claimed.job.id, claimed.job.attempt, claimed.input.as_slice()),
        (job.id, 1, &b"{}"[..])
    );
    assert_eq!(worker.beat(&claimed).await, Beat::Ok);
    assert_matches!(env.state(job.id).await, JobState::Running { attempt: 1, worker_id, .. } if worker_id == worker.id);
    assert!(worker.succeed(&claimed).await);

    assert_matches!(env.state(job.id).await, JobState::Succeeded { .. });
    assert_eq!(ids(&worker.claim(10).await), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
    let attempts = env.store.attempts(job.id).await.unwrap();
    assert_eq!((attempts.len(), attempts[0].outcome.as_str()), (1, "succeeded"));
    let events = env.events(env.tenant_id, job.id, 100).await;
    let names: Vec<_> = events.iter().map(|event| (event.seq, event.body.name())).collect();
    assert_eq!(names, [(1, "queued"), (2, "started"), (3, "succeeded")]);
    assert_matches!(events[1].body, EventBody::Started { worker: id } if id == worker.id);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn dispatching_again_changes_nothing_in_any_state(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    // What keeps a place is remembered while it waits to be tried again; what does not may be brought in, and is refused.
    for (job, late) in [(env.keyed("k", 1), Dispatched::Known), (env.noop(), Dispatched::Added)] {
        env.enqueue(&job).await;
        let first = Dispatch::from_new(&job);
        assert_eq!(
            env.queue.dispatch(&[first.clone(), first.clone()]).await.unwrap(),
            [Dispatched::Known; 2]
        );
        let claimed = worker.one().await;
        assert_eq!(
            env.queue.dispatch(std::slice::from_ref(&first)).await.unwrap(),
            [Dispatched::Known]
        );
        assert_eq!(worker.beat(&claimed).await, Beat::Ok);
        let due = env.clock.now();
        assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
        // A dispatch that was under way since before the claim must not bring the old attempt back.
        assert_eq!(env.queue.dispatch(std::slice::from_ref(&first)).await.unwrap(), [late]);
        assert_eq!(ids(&worker.claim(1).await), []);
        assert_eq!(env.promote().await, [job.id]);
        let claimed = worker.one().await;
        assert_eq!(claimed.job.attempt, 2);
        assert!(worker.succeed(&claimed).await);
    }
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_postgres_refuses_is_forgotten(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, worker) = (env.noop(), env.worker());
    env.enqueue(&job).await;
    env.store
        .cancel(env.tenant_id, job.id, env.clock.now())
        .await
        .unwrap()
        .unwrap();
    // Redis was not told.
    assert_eq!(ids(&worker.claim(1).await), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
    assert_matches!(env.state(job.id).await, JobState::Cancelled { .. });
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn two_workers_never_confirm_the_same_attempt(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let (one, other) = (env.worker(), env.worker());
    let claims = one.take(&common::testing::light(1)).await.unwrap();
    // As after a wipe and a rebuild between the claim and its confirmation.
    let (first, second) = tokio::join!(one.confirm(&claims), async {
        env.store.claim(other.id, &claims, env.clock.now()).await.unwrap()
    });
    assert_eq!(first.len() + second.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn nothing_is_claimed_until_the_generation_is_open(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, worker) = (env.noop(), env.worker());
    env.enqueue(&job).await;
    env.wipe_redis().await;
    let shard = env.queue.shard_of(env.tenant_id);
    assert_eq!(env.queue.generation(shard).await.unwrap(), Generation::Missing);
    assert_matches!(
        worker.take(&common::testing::light(1)).await,
        Err(common::queue::Error::Closed)
    );
    let Generation::Closed(begun) = env.queue.begin_generation(shard).await.unwrap() else {
        panic!("a new generation is closed")
    };
    env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap();
    assert_matches!(
        worker.take(&common::testing::light(1)).await,
        Err(common::queue::Error::Closed)
    );
    assert!(env.queue.open_generation(shard, begun).await.unwrap());
    assert_eq!(ids(&worker.claim(1).await), [job.id]);
}

/// A rebuild that was under way when Redis was wiped again opens nothing.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_generation_that_was_wiped_meanwhile_is_not_opened(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let shard = env.queue.shard_of(env.tenant_id);
    env.wipe_redis().await;
    let Generation::Closed(first) = env.queue.begin_generation(shard).await.unwrap() else {
        panic!("a new generation is closed")
    };
    env.wipe_redis().await;
    assert!(!env.queue.open_generation(shard, first).await.unwrap());
    assert_eq!(env.queue.generation(shard).await.unwrap(), Generation::Missing);
    env.advance(env.queue.lease_ttl());
    assert_matches!(env.queue.begin_generation(shard).await.unwrap(), Generation::Closed(begun) if begun.age.is_zero());
    assert!(!env.queue.open_generation(shard, first).await.unwrap());
}
