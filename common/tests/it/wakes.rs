//! What is due soon is told when it is committed.

use std::time::Duration;

use chrono::TimeDelta;
use common::job::limit::{Limit, Pause, Subject};
use common::job::spec::{JobSpec, SlotClass};
use common::job::{Kind, NewJob};
use common::queue::{Dispatch, Want};
use common::store::wakes::Wake;
use common::testing::{TestEnv, light};
use futures_util::FutureExt;
use sqlx::PgPool;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

fn due_in(env: &TestEnv, delay: TimeDelta) -> NewJob {
    let mut spec = JobSpec::new(Kind::Noop);
    spec.run_at = Some(env.clock.now() + delay);
    env.job(spec, b"{}".to_vec())
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_is_due_soon_wakes_once_a_transaction_and_a_later_one_does_not(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut wakes = env.store.wakes().await.unwrap();

    let mut tx = pool.begin().await.unwrap();
    for _ in 0..3 {
        env.insert(&due_in(&env, TimeDelta::days(1))).await;
        env.insert(&env.noop()).await;
    }
    sqlx::query("notify hothouse_due, 'end'")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    // Words come in the order of the commits: there was none before this.
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap().unwrap();
    assert_eq!(heard, Wake::Everything);

    let soon: Vec<NewJob> = (0..3).map(|_| due_in(&env, TimeDelta::seconds(1))).collect();
    let submission = common::store::insert::Submission {
        tenant_id: env.tenant_id,
        jobs: soon,
        idempotency: None,
    };
    for outcome in env.store.insert(&[submission]).await {
        outcome.unwrap();
    }
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap().unwrap();
    assert_eq!(heard, Wake::Jobs);
    sqlx::query("notify hothouse_due, 'end'").execute(&pool).await.unwrap();
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap().unwrap();
    assert_eq!(heard, Wake::Everything);
    assert!(wakes.next().now_or_never().is_none());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn who_listens_hears_when_its_connection_was_lost(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut wakes = env.store.wakes().await.unwrap();
    let ended: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and query like 'LISTEN%'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(ended, 1);
    // Either it says that it is broken, or that words may be missing.
    let heard = timeout(PATIENCE, wakes.next()).await.unwrap();
    assert!(heard.is_err() || heard.is_ok_and(|wake| wake == Wake::Everything));
}

/// A worker that takes the first of a line lets the next one go, which may be for others than itself.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_that_lets_go_what_it_cannot_take_wakes_who_can(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let key = Subject::Key(env.tenant_id, "key".to_owned());
    let paused = Limit {
        pause: Some(Pause::Open),
        ..Limit::default()
    };
    env.queue.tell_limit(&key, &paused).await.unwrap();
    let jobs = ["qa", "qb"].map(|queue| {
        let mut job = env.keyed("key", 2);
        queue.clone_into(&mut job.spec.queue);
        job
    });
    env.queue
        .dispatch(&jobs.each_ref().map(Dispatch::from_new))
        .await
        .unwrap();
    let [of_a, of_b] = ["qa", "qb"].map(|queue| Want {
        queues: vec![queue.to_owned()],
        ..light(4)
    });
    let (a, b) = (env.worker(), env.worker());
    assert_eq!(a.take(&of_a).await.unwrap(), []);
    assert_eq!(b.take(&of_b).await.unwrap(), []);
    env.queue.tell_limit(&key, &Limit::default()).await.unwrap();
    assert_eq!(b.take(&of_b).await.unwrap(), [], "it is not the first in line");

    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Light);
    waker.wait(PATIENCE).await.unwrap();
    let claims = a.take(&of_a).await.unwrap();
    assert_eq!(
        claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(),
        [jobs[0].id]
    );
    // Well within the time after which a worker that sleeps would ask by itself.
    assert!(
        waker.wait(Duration::from_secs(3)).await.unwrap(),
        "nobody hears of the other queue's job"
    );
    let claims = b.take(&of_b).await.unwrap();
    assert_eq!(
        claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(),
        [jobs[1].id]
    );
}
