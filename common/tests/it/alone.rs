//! A job that killed its workers is claimed alone, so that it condemns nobody else.

use common::job::limit::{Limit, Subject};
use common::job::{FailureCode, JobState, NewJob};
use common::queue::{Handout, Mode, Want};
use common::testing::{TestEnv, TestWorker, ids, light};
use sqlx::PgPool;

fn want(mode: Mode, free: u32) -> Want {
    Want { mode, ..light(free) }
}

async fn handout(env: &TestEnv, worker: &TestWorker, mode: Mode) -> Handout {
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue.claim(shard, worker.id, &want(mode, 10)).await.unwrap()
}

fn running(max: u32) -> Limit {
    Limit {
        max_running: Some(max),
        ..Limit::default()
    }
}

/// Two workers die under all of these jobs.
async fn lose_twice(env: &TestEnv, jobs: &[NewJob]) {
    for _ in 0..2 {
        assert_eq!(env.worker().claim(10).await.len(), jobs.len());
        env.advance(env.queue.lease_ttl());
        assert_eq!(env.reclaim().await.len(), jobs.len());
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_killer_is_condemned_and_its_neighbours_are_not(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..4).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    lose_twice(&env, &jobs).await;
    // One at a time now, whatever room there is.
    let (killer, worker) = (jobs[2].id, env.worker());
    for _ in 0..jobs.len() {
        assert!(handout(&env, &worker, Mode::Idle).await.is_called_alone);
        let claimed = worker.claim_as(&want(Mode::Alone, 10)).await;
        assert_eq!(claimed.len(), 1);
        if claimed[0].job.id == killer {
            env.advance(env.queue.lease_ttl());
            assert_eq!(env.reclaim().await.len(), 1);
        } else {
            assert!(worker.succeed(&claimed[0]).await);
        }
    }
    for job in &jobs {
        let row = env.row(job.id).await;
        if job.id == killer {
            assert_eq!((row.losses, row.error.unwrap().code), (3, FailureCode::Poisoned));
        } else {
            assert!(matches!(row.state, JobState::Succeeded { .. }));
        }
    }
    assert!(!handout(&env, &worker, Mode::Idle).await.is_called_alone);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn no_other_job_is_claimed_with_it_and_no_other_claim_takes_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let suspect = env.noop();
    env.enqueue(&suspect).await;
    lose_twice(&env, std::slice::from_ref(&suspect)).await;
    let others: Vec<NewJob> = (0..3).map(|_| env.noop()).collect();
    for job in &others {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    assert_eq!(worker.claim(10).await.len(), 3);
    assert_eq!(ids(&worker.claim_as(&want(Mode::Alone, 10)).await), [suspect.id]);
    let why = env.queue.why(env.tenant_id, suspect.id).await.unwrap().unwrap();
    assert!(why.is_alone);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_busy_worker_at_a_time_empties_itself(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let suspect = env.noop();
    env.enqueue(&suspect).await;
    lose_twice(&env, std::slice::from_ref(&suspect)).await;
    let (first, second) = (env.worker(), env.worker());
    assert!(handout(&env, &first, Mode::Busy).await.is_called_alone);
    assert!(!handout(&env, &second, Mode::Busy).await.is_called_alone);
    assert!(handout(&env, &first, Mode::Busy).await.is_called_alone);
    // One that is idle need not wait for it.
    assert!(handout(&env, &second, Mode::Idle).await.is_called_alone);
    assert_eq!(ids(&second.claim_as(&want(Mode::Alone, 10)).await), [suspect.id]);
    // Nothing is left: nobody is called again.
    assert!(!handout(&env, &first, Mode::Busy).await.is_called_alone);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_that_does_not_empty_itself_leaves_the_call_to_others(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let suspect = env.noop();
    env.enqueue(&suspect).await;
    lose_twice(&env, std::slice::from_ref(&suspect)).await;
    let (tired, other) = (env.worker(), env.worker());
    assert!(!handout(&env, &tired, Mode::Staying).await.is_called_alone);
    assert!(handout(&env, &other, Mode::Busy).await.is_called_alone);
    // To ask for nothing tells whether the job still waits.
    let shard = env.queue.shard_of(env.tenant_id);
    let asked = env.queue.claim(shard, other.id, &want(Mode::Busy, 0)).await.unwrap();
    assert!(asked.is_called_alone && asked.claims.is_empty());
    assert_eq!(ids(&env.worker().claim_as(&want(Mode::Alone, 10)).await), [suspect.id]);
    let asked = env.queue.claim(shard, other.id, &want(Mode::Busy, 0)).await.unwrap();
    assert!(!asked.is_called_alone);
}

/// It would be in vain: nothing of the queue, or of the tenant, may begin.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn nobody_empties_itself_for_a_job_behind_a_shut_gate(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let suspect = env.noop();
    env.enqueue(&suspect).await;
    lose_twice(&env, std::slice::from_ref(&suspect)).await;
    let (worker, one) = (env.worker(), running(1));
    for subject in [Subject::Queue("default".to_owned()), Subject::Tenant(env.tenant_id)] {
        env.queue.tell_limit(&subject, &one).await.unwrap();
        env.enqueue(&env.noop()).await;
        let holder = worker.one().await;
        assert!(!handout(&env, &worker, Mode::Busy).await.is_called_alone, "{subject:?}");
        assert!(!handout(&env, &worker, Mode::Idle).await.is_called_alone, "{subject:?}");
        assert!(worker.succeed(&holder).await);
        assert!(handout(&env, &worker, Mode::Busy).await.is_called_alone, "{subject:?}");
        env.queue.tell_limit(&subject, &Limit::default()).await.unwrap();
    }
    assert_eq!(ids(&worker.claim_as(&want(Mode::Alone, 10)).await), [suspect.id]);
}

/// Two jobs of one tenant that are claimed alone: that of the queue `q1` comes before that of `q2`.
async fn two_suspects(env: &TestEnv) -> [NewJob; 2] {
    let suspects = ["q1", "q2"].map(|queue| {
        let mut job = env.noop();
        queue.clone_into(&mut job.spec.queue);
        job
    });
    for suspect in &suspects {
        env.enqueue(suspect).await;
        lose_twice(env, std::slice::from_ref(suspect)).await;
    }
    suspects
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_is_claimed_alone_is_called_though_another_of_its_tenant_was_cancelled(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let ([first, second], worker) = (two_suspects(&env).await, env.worker());
    // It has read both.
    assert!(handout(&env, &worker, Mode::Idle).await.is_called_alone);
    let cancelled = env.store.cancel(env.tenant_id, first.id, env.clock.now()).await;
    let cancelled = cancelled.unwrap().unwrap();
    let has_ended = cancelled.state.is_terminal();
    env.queue
        .cancel(env.tenant_id, first.id, cancelled.seq, has_ended)
        .await
        .unwrap();
    assert!(handout(&env, &worker, Mode::Idle).await.is_called_alone);
    assert_eq!(ids(&worker.claim_as(&want(Mode::Alone, 10)).await), [second.id]);
    assert!(!handout(&env, &worker, Mode::Idle).await.is_called_alone);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_is_claimed_alone_is_called_though_a_worker_of_another_queue_took_one_before_it(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let ([first, second], worker) = (two_suspects(&env).await, env.worker());
    assert!(handout(&env, &worker, Mode::Idle).await.is_called_alone);
    // What the other worker claims is not seen where this one asks.
    let of_one_queue = Want {
        queues: vec!["q1".to_owned()],
        ..want(Mode::Alone, 10)
    };
    assert_eq!(ids(&env.worker().claim_as(&of_one_queue).await), [first.id]);
    assert!(handout(&env, &worker, Mode::Idle).await.is_called_alone);
    assert_eq!(ids(&worker.claim_as(&want(Mode::Alone, 10)).await), [second.id]);
    assert!(!handout(&env, &worker, Mode::Idle).await.is_called_alone);
}
