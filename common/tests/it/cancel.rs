//! Cancelling in every state: the first committed end wins.

use assert_matches::assert_matches;
use common::cancel::Canceller;
use common::ids::TenantId;
use common::job::decision::Decision;
use common::job::{JobState, NewJob, Wait};
use common::testing::{TestEnv, failure, ids};
use sqlx::PgPool;

/// As the API does: the commit, then Redis.
async fn cancel(env: &TestEnv, job: &NewJob) -> JobState {
    let job = env
        .store
        .cancel(job.tenant_id, job.id, env.clock.now())
        .await
        .unwrap()
        .unwrap();
    env.queue
        .cancel(job.tenant_id, job.id, job.seq, job.state.is_terminal())
        .await
        .unwrap();
    job.state
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_nobody_holds_ends_at_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    let mut scheduled = env.noop();
    scheduled.spec.run_at = Some(env.clock.now() + chrono::TimeDelta::seconds(60));
    env.insert(&scheduled).await;
    let later = env.clock.now() + chrono::TimeDelta::seconds(60);
    let (retrying, waiting) = (env.noop(), env.noop());
    for (job, decision) in [
        (&retrying, Decision::RetryAt(later, failure())),
        (&waiting, Decision::Wait(Wait::answer())),
    ] {
        env.enqueue(job).await;
        assert!(worker.settle(&worker.one().await, decision).await);
    }
    let queued = env.noop();
    env.enqueue(&queued).await;
    for job in [&scheduled, &queued, &retrying, &waiting] {
        assert_matches!(cancel(&env, job).await, JobState::Cancelled { .. });
        assert_matches!(env.state(job.id).await, JobState::Cancelled { .. });
        let events = env.events(env.tenant_id, job.id, 100).await;
        assert_eq!(events.last().unwrap().body.name(), "cancelled");
    }
    env.advance(std::time::Duration::from_mins(2));
    assert_eq!(env.promote().await, []);
    assert_eq!(ids(&worker.claim(5).await), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn many_are_stopped_as_one_is(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, later) = (env.worker(), env.clock.now() + chrono::TimeDelta::seconds(60));
    let mut jobs = Vec::new();
    for decision in [
        Some(Decision::RetryAt(later, failure())),
        Some(Decision::Wait(Wait::answer())),
        Some(Decision::Succeed),
        None,
    ] {
        let job = env.noop();
        env.enqueue(&job).await;
        let claimed = worker.one().await;
        if let Some(decision) = decision {
            assert!(worker.settle(&claimed, decision).await);
        }
        jobs.push(job);
    }
    let mut scheduled = env.noop();
    scheduled.spec.run_at = Some(later);
    env.insert(&scheduled).await;
    jobs.push(scheduled);
    for _ in 0..3 {
        let queued = env.noop();
        env.enqueue(&queued).await;
        jobs.push(queued);
    }
    let ids: Vec<_> = jobs.iter().map(|job| (job.tenant_id, job.id)).collect();
    let canceller = Canceller::new(env.store.clone(), env.queue.clone());
    assert_eq!(canceller.all(&ids, env.clock.now()).await.unwrap(), 7, "one had ended");
    assert_eq!(canceller.all(&ids, env.clock.now()).await.unwrap(), 1, "one runs");
    for (index, job) in jobs.iter().enumerate() {
        let state = env.state(job.id).await;
        match index {
            2 => assert_matches!(state, JobState::Succeeded { .. }),
            3 => assert_matches!(state, JobState::Running { .. }),
            _ => {
                assert_matches!(state, JobState::Cancelled { .. });
                let events = env.events(env.tenant_id, job.id, 100).await;
                assert_eq!(events.last().unwrap().body.name(), "cancelled");
            }
        }
    }
    let shard = env.queue.shard_of(env.tenant_id);
    assert_eq!(env.queue.take_cancels(shard, worker.id).await.unwrap(), [jobs[3].id]);
    let foreign = [(TenantId::new(), jobs[3].id)];
    assert_eq!(canceller.all(&foreign, env.clock.now()).await.unwrap(), 0);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_running_job_is_told_and_ends_by_its_worker(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    assert_matches!(cancel(&env, &job).await, JobState::Running { .. });
    let shard = env.queue.shard_of(env.tenant_id);
    assert_eq!(env.queue.take_cancels(shard, worker.id).await.unwrap(), [job.id]);
    assert_eq!(env.store.cancels_requested(&[job.id]).await.unwrap(), [job.id]);
    assert!(worker.settle(&claimed, Decision::Cancel).await);
    assert_matches!(env.state(job.id).await, JobState::Cancelled { .. });
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_ended_first_stays_as_it_is(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let worker = env.worker();
    assert!(worker.succeed(&worker.one().await).await);
    assert_matches!(cancel(&env, &job).await, JobState::Succeeded { .. });
    // A result that comes after the request, but before the worker obeyed, stands too.
    let job = env.noop();
    env.enqueue(&job).await;
    let claimed = worker.one().await;
    cancel(&env, &job).await;
    assert!(worker.succeed(&claimed).await);
    assert_matches!(env.state(job.id).await, JobState::Succeeded { .. });
}

/// The worker decides to retry without having heard of the request.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_request_is_not_lost_when_the_attempt_just_fails(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    for decision in [
        Decision::RetryAt(env.clock.now(), failure()),
        Decision::GiveBack,
        Decision::Wait(Wait::answer()),
    ] {
        for told_before in [true, false] {
            let job = env.noop();
            env.enqueue(&job).await;
            let claimed = worker.one().await;
            let asked = env
                .store
                .cancel(env.tenant_id, job.id, env.clock.now())
                .await
                .unwrap()
                .unwrap();
            if told_before {
                env.queue.cancel(env.tenant_id, job.id, asked.seq, false).await.unwrap();
            }
            assert!(
                worker
                    .settle_after(&claimed, decision.clone(), &worker.said(&claimed, 3))
                    .await
            );
            if !told_before {
                env.queue.cancel(env.tenant_id, job.id, asked.seq, false).await.unwrap();
            }
            assert_matches!(env.state(job.id).await, JobState::Cancelled { .. }, "{decision:?}");
            // Its attempt was cancelled, so it is none that failed.
            let detail = env.store.job(env.tenant_id, job.id).await.unwrap().unwrap();
            assert_eq!(detail.job.failures, 0, "{decision:?}");
            assert_eq!(env.promote().await, []);
            assert_eq!(ids(&worker.claim(5).await), []);
            let events = env.events(env.tenant_id, job.id, 100).await;
            assert_eq!(events.last().unwrap().body.name(), "cancelled");
            assert_eq!(events.iter().filter(|event| event.body.is_terminal()).count(), 1);
            let cancel_set = format!(":cancel:{}", worker.id);
            let left: Vec<_> = env
                .leftovers()
                .await
                .into_iter()
                .filter(|key| !key.ends_with(&cancel_set))
                .collect();
            assert_eq!(left, Vec::<String>::new(), "{decision:?} {told_before}");
        }
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn another_tenants_job_is_not_there(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let job = env.noop();
    env.enqueue(&job).await;
    let other = TenantId::new();
    assert!(
        env.store
            .cancel(other, job.id, env.clock.now())
            .await
            .unwrap()
            .is_none()
    );
    assert!(env.store.job(other, job.id).await.unwrap().is_none());
    assert!(env.log.read(other, job.id, 0, 10).await.unwrap().is_none());
    assert_matches!(env.state(job.id).await, JobState::Queued { .. });
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_cancel_and_a_claim_at_once_agree(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    for _ in 0..20 {
        let job = env.noop();
        env.enqueue(&job).await;
        let (state, claimed) = tokio::join!(cancel(&env, &job), worker.claim(1));
        match env.state(job.id).await {
            JobState::Cancelled { .. } => assert!(claimed.is_empty(), "{state:?}"),
            JobState::Running { .. } => {
                assert_eq!(env.store.cancels_requested(&[job.id]).await.unwrap(), [job.id]);
                assert!(worker.settle(&claimed[0], Decision::Cancel).await);
            }
            state => panic!("{state:?}"),
        }
    }
}
