//! The strategies of concurrency keys, decided in Postgres when a job is accepted.

#![expect(clippy::panic, reason = "a test that cannot go on fails")]

use chrono::TimeDelta;
use common::cancel::Canceller;
use common::ids::{ApiKeyId, JobId};
use common::job::decision::Decision;
use common::job::wait::{Until, Wait};
use common::job::{Concurrency, FailureCode, JobState, NewJob, StateName, Strategy};
use common::store::admit::Decided;
use common::store::idempotency::Idempotency;
use common::store::insert::{Accepted, Submission};
use common::store::list::Filter;
use common::store::settle::Settlement;
use common::testing::{TestEnv, failure};
use sqlx::PgPool;

use crate::crowd::{analyze, rows_read, rows_read_since};

fn keyed(env: &TestEnv, strategy: Strategy, limit: u32) -> NewJob {
    let mut job = env.noop();
    job.spec.concurrency = Some(Concurrency {
        key: "key".to_owned(),
        limit,
        strategy,
    });
    job
}

fn submission(env: &TestEnv, jobs: &[NewJob], key: Option<&str>) -> Submission {
    Submission {
        tenant_id: env.tenant_id,
        jobs: jobs.to_vec(),
        idempotency: key.map(|key| Idempotency {
            key: key.to_owned(),
            fingerprint: [7; 32],
            refused: Vec::new(),
        }),
    }
}

async fn submit(env: &TestEnv, jobs: &[NewJob], key: Option<&str>) -> Accepted {
    let submission = submission(env, jobs, key);
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
async fn a_long_line_of_a_key_is_not_counted_for_each_newcomer(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let line: Vec<NewJob> = (0..1_000).map(|_| keyed(&env, Strategy::Queue, 1)).collect();
    submit(&env, &line, None).await;
    analyze(&pool).await;
    let before = rows_read(&pool).await;
    for _ in 0..20 {
        let late = keyed(&env, Strategy::Reject, 1);
        assert_eq!(decided(submit(&env, &[late], None).await).rejected.len(), 1);
    }
    let read = rows_read_since(&pool, before, 20).await;
    assert!(read < 1_000, "{read} rows");
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
async fn a_request_and_its_repetition_that_arrive_together_are_refused_alike(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    submit(&env, &[keyed(&env, Strategy::Reject, 1)], None).await;
    // Also where another job of the request was refused before.
    for (key, refused) in [("k", vec![]), ("l", vec![0])] {
        let jobs = [keyed(&env, Strategy::Reject, 1), keyed(&env, Strategy::Reject, 1)];
        let submissions = jobs.clone().map(|job| {
            let mut submission = submission(&env, &[job], Some(key));
            submission.idempotency.as_mut().unwrap().refused.clone_from(&refused);
            submission
        });
        let answers = env.store.insert(&submissions).await;
        for (answer, job) in answers.into_iter().zip(&jobs) {
            assert_eq!(decided(answer.unwrap()).rejected, [job.id]);
        }
    }
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
    let (now, nil) = (env.clock.now(), JobId(uuid::Uuid::nil()));
    let recent = env
        .store
        .recent((nil, nil), now, now + TimeDelta::seconds(1), (&[], 10))
        .await;
    assert_eq!(recent.unwrap().cancelling, gone);
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
    assert!(worker.settle(&held, Decision::Cancel).await);
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
    // What they decide is committed with their promotion: whoever promotes them may die at once.
    let promoted = env.store.promote(env.clock.now(), 10).await.unwrap();
    assert_eq!(promoted.jobs.len(), 2);
    assert_eq!(promoted.admitted().map(|job| job.id).collect::<Vec<_>>(), [latest.id]);
    assert_eq!(promoted.decided.rejected, [late.id]);
    assert_eq!(promoted.decided.superseded, [(env.tenant_id, now.id)]);
    assert!(env.row(now.id).await.cancel_requested_at.is_some());
    let row = env.row(late.id).await;
    assert_eq!(row.error.unwrap().code, FailureCode::ConcurrencyLimit);
}

/// As if they were submitted again one after the other, in their order, and committed with them.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn redriven_jobs_decide_in_the_order_of_the_old_ones(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    for strategy in [Strategy::Reject, Strategy::CancelRunning] {
        let mut old = Vec::new();
        for _ in 0..2 {
            let mut job = keyed(&env, strategy, 1);
            job.spec.queue = strategy.as_str().to_owned();
            job.spec.concurrency.as_mut().unwrap().key = job.spec.queue.clone();
            env.enqueue(&job).await;
            assert!(worker.settle(&worker.one().await, Decision::Fail(failure())).await);
            old.push(job.id);
        }
        let by = (ApiKeyId::new(), env.clock.now());
        let filter = Filter {
            queue: Some(strategy.as_str().to_owned()),
            ..Filter::default()
        };
        let failed = StateName::Failed;
        let redriven = env
            .store
            .redrive_matching(env.tenant_id, &filter, failed, 100, by)
            .await
            .unwrap();
        let new: Vec<JobId> = redriven.jobs.iter().map(|job| job.id).collect();
        let of: Vec<JobId> = redriven.jobs.iter().filter_map(|job| job.redrive_of).collect();
        assert_eq!(of, old);
        if strategy == Strategy::Reject {
            assert_eq!(redriven.decided.rejected, [new[1]]);
            let refused = env.row(new[1]).await;
            assert!(matches!(refused.state, JobState::Failed { .. }), "{refused:?}");
        } else {
            assert_eq!(redriven.decided.superseded, [(env.tenant_id, new[0])]);
            assert!(matches!(env.state(new[1]).await, JobState::Queued { .. }));
        }
    }
}

/// Children with a key, as a parent that waits submits them.
fn children(env: &TestEnv, parent: &NewJob, strategy: Strategy, count: usize) -> Vec<NewJob> {
    let now = env.clock.now();
    let child = |place| {
        let mut job = keyed(env, strategy, 1);
        job.id = JobId::child_of(parent.id, now, place);
        job.links.parent_id = Some(parent.id);
        job
    };
    (0..count).map(child).collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_of_a_group_are_refused_in_their_order_and_their_parent_hears_of_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    // Its own place does not count: it waits for them.
    let parent = keyed(&env, Strategy::Queue, 1);
    env.enqueue(&parent).await;
    let claimed = worker.one().await;
    let jobs = children(&env, &parent, Strategy::Reject, 3);
    assert!(
        worker
            .wait_for(&claimed, Wait::children(Until::AllEnded), jobs.clone())
            .await
    );
    assert!(matches!(env.state(jobs[0].id).await, JobState::Queued { .. }));
    for refused in &jobs[1..] {
        let row = env.row(refused.id).await;
        assert!(matches!(row.state, JobState::Failed { .. }), "{row:?}");
        assert_eq!(row.error.unwrap().code, FailureCode::ConcurrencyLimit);
    }
    // One that wants to hear of the first failure is woken by the commit itself.
    let hasty = env.noop();
    env.enqueue(&hasty).await;
    let claimed = worker.claim(5).await;
    let claimed = claimed.iter().find(|one| one.job.id == hasty.id).unwrap();
    let jobs = children(&env, &hasty, Strategy::Reject, 1);
    assert!(
        worker
            .wait_for(claimed, Wait::children(Until::FirstFailure), jobs.clone())
            .await
    );
    assert!(matches!(env.state(jobs[0].id).await, JobState::Failed { .. }));
    assert!(matches!(env.state(hasty.id).await, JobState::Queued { .. }));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_newest_of_a_groups_jobs_takes_the_place_of_the_others(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let stranger = keyed(&env, Strategy::Queue, 1);
    env.enqueue(&stranger).await;
    let parent = env.noop();
    env.enqueue(&parent).await;
    let claimed = worker.claim(2).await;
    let claimed = claimed.iter().find(|one| one.job.id == parent.id).unwrap();
    let jobs = children(&env, &parent, Strategy::CancelRunning, 2);
    let wait = Wait::children(Until::AllEnded);
    let settlement = worker.settlement(claimed, Decision::Wait(wait), &[]);
    let committed = env
        .store
        .settle(
            worker.id,
            &[Settlement {
                children: jobs.clone(),
                ..settlement
            }],
        )
        .await
        .unwrap();
    let gone = committed.decided.superseded;
    assert_eq!(gone, [(env.tenant_id, stranger.id), (env.tenant_id, jobs[0].id)]);
    Canceller::new(env.store.clone(), env.queue.clone())
        .make_way(&gone, env.clock.now())
        .await;
    assert!(matches!(env.state(jobs[0].id).await, JobState::Cancelled { .. }));
    assert!(env.row(stranger.id).await.cancel_requested_at.is_some());
    assert!(matches!(env.state(jobs[1].id).await, JobState::Queued { .. }));
}
