//! Acting on many jobs, batch after batch.

use std::time::Duration;

use common::cancel::{Canceller, OPEN};
use common::ids::{ApiKeyId, TenantId};
use common::job::decision::Decision;
use common::job::{NewJob, StateName};
use common::store::list::Filter;
use common::testing::{TestEnv, eventually, failure};
use sqlx::PgPool;

fn of_queue(queue: &str) -> Filter {
    Filter {
        queue: Some(queue.to_owned()),
        ..Filter::default()
    }
}

fn noops(env: &TestEnv, count: usize) -> Vec<NewJob> {
    (0..count).map(|_| env.noop()).collect()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_open_job_is_cancelled_or_asked_to_stop_once(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, canceller) = (env.worker(), Canceller::new(env.store.clone(), env.queue.clone()));
    let jobs = noops(&env, 5);
    for job in &jobs {
        env.enqueue(job).await;
    }
    let stranger = NewJob {
        tenant_id: TenantId::new(),
        ..env.noop()
    };
    let running = worker.one().await;
    let retrying = worker.one().await;
    let later = env.clock.now() + chrono::TimeDelta::seconds(60);
    assert!(worker.settle(&retrying, Decision::RetryAt(later, failure())).await);
    env.enqueue(&stranger).await;
    let clock = env.clock.clock();
    let cancel = async || {
        let filter = of_queue("default");
        canceller
            .matching(env.tenant_id, &filter, &OPEN, &clock, None)
            .await
            .unwrap()
    };
    let progress = cancel().await;
    assert_eq!((progress.matched, progress.more), (5, false));
    assert_eq!(cancel().await.matched, 0, "what was asked once is not asked again");
    for job in &jobs {
        let expected = if job.id == running.job.id {
            StateName::Running
        } else {
            StateName::Cancelled
        };
        assert_eq!(env.state(job.id).await.name(), expected);
    }
    let shard = env.queue.shard_of(env.tenant_id);
    assert_eq!(
        env.queue.take_cancels(shard, worker.id).await.unwrap(),
        [running.job.id]
    );
    assert!(worker.settle(&running, Decision::Cancel).await);
    assert_eq!(env.state(stranger.id).await.name(), StateName::Queued);
    assert!(worker.succeed(&worker.one().await).await);
    assert!(worker.claim(1).await.is_empty());
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// It is passed over while it is locked, and then in a state that was looked through before.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_changes_its_state_meanwhile_is_cancelled_too(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (worker, canceller) = (env.worker(), Canceller::new(env.store.clone(), env.queue.clone()));
    let (changing, other) = (env.noop(), env.noop());
    env.enqueue(&changing).await;
    worker.one().await;
    env.enqueue(&other).await;
    let mut settling = pool.begin().await.unwrap();
    sqlx::query("update jobs set state = 'retrying', due_at = now() + interval '1 hour' where id = $1")
        .bind(changing.id)
        .execute(&mut *settling)
        .await
        .unwrap();
    let (filter, clock) = (of_queue("default"), env.clock.clock());
    let cancelling = canceller.matching(env.tenant_id, &filter, &OPEN, &clock, None);
    let settled = async {
        eventually(Duration::from_secs(10), "the other is cancelled", || async {
            (env.state(other.id).await.name() == StateName::Cancelled).then_some(())
        })
        .await;
        settling.commit().await.unwrap();
    };
    let (progress, ()) = tokio::join!(cancelling, settled);
    let progress = progress.unwrap();
    assert_eq!((progress.matched, progress.more), (2, false));
    assert_eq!(env.state(changing.id).await.name(), StateName::Cancelled);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_batch_that_is_cut_off_goes_on_where_it_ended(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let now = env.clock.now();
    for job in noops(&env, 7) {
        env.insert(&job).await;
    }
    let filter = Filter::default();
    let mut seen = Vec::new();
    loop {
        let batch = env
            .store
            .cancel_matching(env.tenant_id, &filter, StateName::Queued, 3, now)
            .await
            .unwrap();
        if batch.stopped.is_empty() {
            break;
        }
        assert!(batch.stopped.len() <= 3);
        seen.extend(batch.stopped.iter().map(|job| job.job_id));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 7);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_failed_job_is_repeated_by_filter_once_and_by_its_id_as_often_as_asked(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let worker = env.worker();
    for job in noops(&env, 3) {
        env.enqueue(&job).await;
    }
    let claimed = worker.claim(3).await;
    for claimed in &claimed[..2] {
        assert!(worker.settle(claimed, Decision::Fail(failure())).await);
    }
    assert!(worker.succeed(&claimed[2]).await);
    let by = (ApiKeyId::new(), env.clock.now());
    let filter = of_queue("default");
    let redrive = async || {
        let failed = StateName::Failed;
        env.store
            .redrive_matching(env.tenant_id, &filter, failed, 100, by)
            .await
            .unwrap()
            .jobs
    };
    assert_eq!(
        env.store
            .count_matching(env.tenant_id, &filter, StateName::Failed, 100)
            .await
            .unwrap(),
        2
    );
    let new = redrive().await;
    assert_eq!(new.len(), 2);
    let old = env.row(new[0].redrive_of.unwrap()).await;
    assert_eq!(
        (old.redriven_as, new[0].attempt, new[0].failures),
        (Some(new[0].id), 0, 0)
    );
    assert_eq!(redrive().await.len(), 0);
    assert_eq!(
        env.store
            .count_matching(env.tenant_id, &filter, StateName::Failed, 100)
            .await
            .unwrap(),
        0
    );
    let again = env
        .store
        .redrive(env.tenant_id, old.id, by)
        .await
        .unwrap()
        .jobs
        .remove(0);
    assert_eq!(env.row(old.id).await.redriven_as, Some(again.id));
    let strangers = env.store.redrive(TenantId::new(), old.id, by).await.unwrap();
    assert!(strangers.jobs.is_empty());
    let open = env.store.redrive(env.tenant_id, again.id, by).await.unwrap();
    assert!(open.jobs.is_empty(), "it has not ended");
}
