//! Jobs that wait: for their children, for an answer, or until a deadline.

use std::time::Duration;

use assert_matches::assert_matches;
use chrono::TimeDelta;
use common::cancel::Canceller;
use common::ids::{JobId, TenantId};
use common::job::decision::Decision;
use common::job::wait::{Until, Wait};
use common::job::{Concurrency, JobState, NewJob, StateName, Strategy, Woken};
use common::queue::{Mode, Want};
use common::store::claim::Claimed;
use common::store::wait::Orphaned;
use common::testing::{TestEnv, TestWorker, failure, ids, light};
use sqlx::PgPool;

const ALL: Wait = Wait {
    waits_for: common::job::WaitFor::Children { until: Until::AllEnded },
    deadline: None,
};

fn children(env: &TestEnv, parent: JobId, count: usize) -> Vec<NewJob> {
    let now = env.clock.now();
    let child = |place| {
        let mut job = env.noop();
        job.id = JobId::child_of(parent, now, place);
        job.links.parent_id = Some(parent);
        job
    };
    (0..count).map(child).collect()
}

/// A parent that waits for so many children, which are dispatched.
async fn waiting(env: &TestEnv, worker: &TestWorker, wait: Wait, count: usize) -> (NewJob, Vec<NewJob>) {
    let parent = env.noop();
    env.enqueue(&parent).await;
    let claimed = worker.one().await;
    assert_eq!(claimed.job.id, parent.id);
    let children = children(env, parent.id, count);
    assert!(worker.wait_for(&claimed, wait, children.clone()).await);
    (parent, children)
}

async fn is_woken(env: &TestEnv, parent: &NewJob, by: Woken) {
    let row = env.row(parent.id).await;
    assert_matches!(row.state, JobState::Queued { .. });
    assert_eq!(row.woken_by, Some(by));
}

fn states(children: &[common::job::group::Member]) -> Vec<StateName> {
    children.iter().map(|child| child.state).collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_last_child_wakes_its_parent_which_sees_what_came_out(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, submitted) = waiting(&env, &worker, ALL, 2).await;
    assert_matches!(env.state(parent.id).await, JobState::Waiting { deadline: None });
    let claimed = worker.claim(5).await;
    assert_eq!(
        ids(&claimed),
        submitted.iter().map(|child| child.id).collect::<Vec<_>>()
    );
    assert_eq!(claimed[0].job.parent_id, Some(parent.id));
    let mut first = worker.settlement(&claimed[0], Decision::Succeed, &[]);
    first.result = Some(b"{\"n\":1}".to_vec());
    assert!(worker.commit(&first).await);
    worker.ack(&claimed[0], &first).await;
    assert_matches!(env.state(parent.id).await, JobState::Waiting { .. });
    assert!(worker.settle(&claimed[1], Decision::Fail(failure())).await);
    is_woken(&env, &parent, Woken::Children).await;

    let again = worker.one().await;
    assert_eq!((again.job.id, again.job.attempt, again.job.failures), (parent.id, 2, 0));
    let seen = env.store.children(env.tenant_id, parent.id, 1_000).await.unwrap();
    assert_eq!(states(&seen), [StateName::Succeeded, StateName::Failed]);
    assert_eq!(seen[0].result.as_ref().unwrap().get(), "{\"n\":1}");
    assert_eq!(seen[1].error, Some(failure()));
    let short = env.store.children(env.tenant_id, parent.id, 3).await.unwrap();
    assert!(short[0].result.is_none() && short[0].result_omitted && !short[1].result_omitted);
    assert_eq!(
        env.store
            .children(TenantId::new(), parent.id, 1_000)
            .await
            .unwrap()
            .len(),
        0
    );
    assert!(worker.succeed(&again).await);
    let names: Vec<&str> = env
        .events(env.tenant_id, parent.id, 100)
        .await
        .iter()
        .map(|event| event.body.name())
        .collect();
    assert_eq!(
        names,
        ["queued", "started", "waiting", "queued", "started", "succeeded"]
    );
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// Two workers commit the ends of the last two children at the same moment: one of them sees the other.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn two_children_that_end_at_once_wake_their_parent_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (one, other) = (env.worker(), env.worker());
    for _ in 0..40 {
        let (parent, _) = waiting(&env, &one, ALL, 2).await;
        let (first, second) = (one.one().await, other.one().await);
        let (a, b) = tokio::join!(one.succeed(&first), other.settle(&second, Decision::Fail(failure())));
        assert!(a && b);
        is_woken(&env, &parent, Woken::Children).await;
        let claimed = one.claim(5).await;
        assert_eq!(ids(&claimed), [parent.id]);
        assert!(one.succeed(&claimed[0]).await);
    }
}

/// The parent waits again while its last child ends: either the wait sees the end, or the end sees the wait.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wait_that_begins_while_the_last_child_ends_is_over(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let deadline = |env: &TestEnv| ALL.until(env.clock.now());
    for _ in 0..40 {
        let (parent, _) = waiting(&env, &worker, deadline(&env), 1).await;
        let child = worker.one().await;
        assert_eq!(env.promote().await, [parent.id]);
        let again = worker.one().await;
        assert_eq!(again.job.woken_by, Some(Woken::Deadline));
        let (a, b) = tokio::join!(worker.wait_for(&again, ALL, Vec::new()), worker.succeed(&child));
        assert!(a && b);
        is_woken(&env, &parent, Woken::Children).await;
        assert!(worker.succeed(&worker.one().await).await);
    }
}

/// The last child ends after its parent's commit and before the parent's worker told Redis.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_parent_that_is_woken_before_its_ack_goes_on_with_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, _) = waiting(&env, &worker, ALL.until(env.clock.now()), 1).await;
    let child = worker.one().await;
    assert_eq!(env.promote().await, [parent.id]);
    let again = worker.one().await;
    let settlement = worker.settlement(&again, Decision::Wait(ALL), &[]);
    assert!(worker.commit(&settlement).await);
    assert!(worker.succeed(&child).await);
    is_woken(&env, &parent, Woken::Children).await;
    assert_eq!(ids(&worker.claim(5).await), [], "its lease is not over");
    worker.ack(&again, &settlement).await;
    assert_eq!(ids(&worker.claim(5).await), [parent.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wait_for_what_has_ended_is_over_at_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, _) = waiting(&env, &worker, ALL, 0).await;
    is_woken(&env, &parent, Woken::Children).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_first_failure_wakes_who_waits_for_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, _) = waiting(&env, &worker, Wait::children(Until::FirstFailure), 3).await;
    let claimed = worker.claim(3).await;
    assert!(worker.succeed(&claimed[0]).await);
    assert_matches!(env.state(parent.id).await, JobState::Waiting { .. });
    assert!(worker.settle(&claimed[1], Decision::Fail(failure())).await);
    is_woken(&env, &parent, Woken::Children).await;
    // A retry is no failure yet.
    let (other, _) = waiting_beside(&env, &worker, &[claimed[2].job.id, parent.id]).await;
    let child = worker
        .claim(5)
        .await
        .into_iter()
        .find(|c| c.job.parent_id == Some(other.id))
        .unwrap();
    let later = env.clock.now() + TimeDelta::seconds(10);
    assert!(worker.settle(&child, Decision::RetryAt(later, failure())).await);
    assert_matches!(env.state(other.id).await, JobState::Waiting { .. });
}

async fn waiting_beside(env: &TestEnv, worker: &TestWorker, known: &[JobId]) -> (NewJob, Vec<NewJob>) {
    let parent = env.noop();
    env.enqueue(&parent).await;
    let claimed: Vec<Claimed> = worker.claim(5).await;
    let own = claimed.iter().find(|claimed| claimed.job.id == parent.id).unwrap();
    assert!(
        claimed
            .iter()
            .all(|c| c.job.id == parent.id || known.contains(&c.job.id))
    );
    let children = children(env, parent.id, 1);
    let wait = Wait::children(Until::FirstFailure);
    assert!(worker.wait_for(own, wait, children.clone()).await);
    (parent, children)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_deadline_ends_a_wait_and_an_answer_before_it_does_too(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let deadline = env.clock.now() + TimeDelta::seconds(10);
    let wait = || Wait::answer().until(deadline);
    let (late, _) = waiting(&env, &worker, wait(), 0).await;
    let (answered, _) = waiting(&env, &worker, wait(), 0).await;
    assert_matches!(env.state(late.id).await, JobState::Waiting { deadline: Some(at) } if (at - deadline).abs() < TimeDelta::milliseconds(1));
    assert_eq!(env.promote().await, []);
    let now = env.clock.now();
    assert!(
        env.store
            .resume(TenantId::new(), answered.id, now)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        env.store
            .resume(env.tenant_id, answered.id, now)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        env.store
            .resume(env.tenant_id, answered.id, now)
            .await
            .unwrap()
            .is_none(),
        "it is answered"
    );
    is_woken(&env, &answered, Woken::Answer).await;
    env.advance(Duration::from_secs(11));
    assert_eq!(env.promote().await, [late.id]);
    is_woken(&env, &late, Woken::Deadline).await;
    assert!(
        env.store
            .resume(env.tenant_id, late.id, env.clock.now())
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(worker.one().await.job.woken_by, Some(Woken::Deadline));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn children_that_are_cancelled_or_poisoned_count_as_ended(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, submitted) = waiting(&env, &worker, ALL, 2).await;
    env.store
        .cancel(env.tenant_id, submitted[0].id, env.clock.now())
        .await
        .unwrap();
    env.queue
        .forget(env.queue.shard_of(env.tenant_id), &[(submitted[0].id, 2)])
        .await
        .unwrap();
    for mode in [Mode::Busy, Mode::Busy, Mode::Alone] {
        assert_matches!(env.state(parent.id).await, JobState::Waiting { .. });
        let want = Want { mode, ..light(5) };
        assert_eq!(ids(&env.worker().claim_as(&want).await), [submitted[1].id]);
        env.advance(Duration::from_secs(7));
        assert_eq!(env.reclaim().await.len(), 1);
    }
    assert_matches!(env.state(submitted[1].id).await, JobState::Failed { .. });
    is_woken(&env, &parent, Woken::Children).await;
    env.redispatch().await;
    assert_eq!(ids(&worker.claim(5).await), [parent.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_children_of_a_parent_that_ended_are_cancelled(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, submitted) = waiting(&env, &worker, ALL, 3).await;
    let running = worker.one().await;
    assert_eq!(running.job.id, submitted[0].id);
    let ended = env
        .store
        .cancel(env.tenant_id, parent.id, env.clock.now())
        .await
        .unwrap()
        .unwrap();
    env.queue
        .cancel(env.tenant_id, parent.id, ended.seq, true)
        .await
        .unwrap();
    let orphaned = Orphaned {
        tenant_id: env.tenant_id,
        parent_id: parent.id,
    };
    assert_eq!(env.store.orphaned(10).await.unwrap(), [orphaned]);
    let canceller = Canceller::new(env.store.clone(), env.queue.clone());
    assert_eq!(canceller.orphans(orphaned, &env.clock.clock()).await.unwrap(), 3);
    assert_eq!(
        env.store.orphaned(10).await.unwrap(),
        [orphaned],
        "one batch more looks whether any was missed"
    );
    assert_eq!(canceller.orphans(orphaned, &env.clock.clock()).await.unwrap(), 0);
    assert_eq!(env.store.orphaned(10).await.unwrap(), []);
    let shard = env.queue.shard_of(env.tenant_id);
    assert_eq!(
        env.queue.take_cancels(shard, worker.id).await.unwrap(),
        [submitted[0].id]
    );
    assert!(worker.settle(&running, Decision::Cancel).await);
    let seen = env.store.children(env.tenant_id, parent.id, 0).await.unwrap();
    assert_eq!(states(&seen), [StateName::Cancelled; 3]);
    assert_matches!(env.state(parent.id).await, JobState::Cancelled { .. });
    assert_eq!(ids(&worker.claim(5).await), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_parent_that_was_to_stop_submits_nothing(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let parent = env.noop();
    env.enqueue(&parent).await;
    let claimed = worker.one().await;
    env.store
        .cancel(env.tenant_id, parent.id, env.clock.now())
        .await
        .unwrap();
    let mut settlement = worker.settlement(&claimed, Decision::Wait(ALL), &[]);
    settlement.children = children(&env, parent.id, 2);
    let committed = env.store.settle(worker.id, &[settlement]).await.unwrap();
    assert_eq!(committed.changed, [(parent.id, StateName::Cancelled)]);
    assert_eq!(env.store.count_children(parent.id).await.unwrap(), (0, 0));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_waiting_parent_holds_no_place_that_its_children_need(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let key = || {
        Some(Concurrency {
            key: "k".to_owned(),
            limit: 1,
            strategy: Strategy::Queue,
        })
    };
    let mut parent = env.noop();
    parent.spec.concurrency = key();
    env.enqueue(&parent).await;
    let claimed = worker.one().await;
    let mut submitted = children(&env, parent.id, 2);
    for child in &mut submitted {
        child.spec.concurrency = key();
    }
    assert!(worker.wait_for(&claimed, ALL, submitted.clone()).await);
    for child in &submitted {
        let claimed = worker.claim(5).await;
        assert_eq!(ids(&claimed), [child.id], "one at a time");
        assert!(worker.succeed(&claimed[0]).await);
    }
    // To go on it needs the place like any other.
    let mut other = env.noop();
    other.spec.concurrency = key();
    let claimed = worker.one().await;
    assert_eq!(claimed.job.id, parent.id);
    env.enqueue(&other).await;
    assert_eq!(ids(&worker.claim(5).await), []);
    assert!(worker.succeed(&claimed).await);
    assert_eq!(ids(&worker.claim(5).await), [other.id]);
}

/// The worker dies after its commit and before it said anything to Redis, at each of its three commits.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_worker_that_dies_right_after_a_commit_loses_nothing(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (dead, live) = (env.worker(), env.worker());
    let parent = env.noop();
    env.enqueue(&parent).await;
    let mut settlement = dead.settlement(&dead.one().await, Decision::Wait(ALL), &[]);
    settlement.children = children(&env, parent.id, 1);
    let child = settlement.children[0].id;
    env.store.settle(dead.id, &[settlement]).await.unwrap();
    env.redispatch().await;
    let claimed = dead.claim(5).await;
    assert_eq!(ids(&claimed), [child]);
    let settlement = dead.settlement(&claimed[0], Decision::Succeed, &[]);
    env.store.settle(dead.id, &[settlement]).await.unwrap();
    env.redispatch().await;
    env.advance(Duration::from_secs(7));
    assert_eq!(env.reclaim().await.len(), 0, "nothing ran");
    env.redispatch().await;
    let claimed = dead.claim(5).await;
    assert_eq!((ids(&claimed), claimed[0].job.attempt), (vec![parent.id], 2));
    // It dies while it goes on: the next one goes on as well, and submits nothing.
    env.advance(Duration::from_secs(7));
    assert_eq!(env.reclaim().await.len(), 1);
    let again = live.one().await;
    assert_eq!((again.job.attempt, again.job.woken_by), (3, Some(Woken::Children)));
    assert!(again.job.waits_for.is_some());
    assert!(live.succeed(&again).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wiped_redis_knows_the_children_again_and_leaves_the_parent_waiting(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let (parent, submitted) = waiting(&env, &worker, ALL, 2).await;
    env.wipe_redis().await;
    env.rebuild().await;
    let claimed = worker.claim(5).await;
    assert_eq!(
        ids(&claimed),
        submitted.iter().map(|child| child.id).collect::<Vec<_>>()
    );
    for child in &claimed {
        assert!(worker.succeed(child).await);
    }
    assert_eq!(ids(&worker.claim(5).await), [parent.id]);
}
