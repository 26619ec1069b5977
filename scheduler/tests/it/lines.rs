//! Long lines at one gate: what may pass others goes past them, and Redis holds a part of them only.

use common::config::Leases;
use common::ids::JobId;
use common::job::{NewJob, Rate};
use common::service::Duty;
use common::testing::{TestEnv, TestWorker, ids, leases};
use scheduler::duties::Redispatch;
use sqlx::PgPool;

/// Of a backlog; a line has a tenth of it.
const DISPATCHED_MAX: u32 = 40;

async fn env(pool: PgPool) -> (TestEnv, Redispatch) {
    let leases = Leases {
        dispatched_max: DISPATCHED_MAX,
        ..leases()
    };
    let env = TestEnv::with_leases(pool, &leases).await;
    let redispatch = Redispatch::new(env.store.clone(), env.queue.clone(), DISPATCHED_MAX);
    (env, redispatch)
}

async fn known(env: &TestEnv) -> usize {
    let contents = env.contents().await;
    let index = contents.iter().find(|(key, _)| key.ends_with(":idx"));
    index.map_or(0, |(_, jobs)| jobs.len())
}

/// Looks on as the duty and an idle worker do, until it gets something else than the first of a line.
async fn found_behind(env: &TestEnv, redispatch: &Redispatch, worker: &TestWorker) -> Vec<JobId> {
    for _ in 0..50 {
        let claimed = worker.claim(2).await;
        if !claimed.is_empty() {
            return ids(&claimed);
        }
        redispatch.tick(env.clock.now()).await.unwrap();
    }
    Vec::new()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_may_run_is_found_behind_a_line_longer_than_a_backlog(pool: PgPool) {
    let (env, redispatch) = env(pool).await;
    let line: Vec<NewJob> = (0..DISPATCHED_MAX * 3).map(|_| env.keyed("one", 1)).collect();
    for job in &line {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let mut running = worker.one().await;
    // One of another key, one of none; they are spilled like the rest of the line.
    let behind = [env.keyed("two", 1), env.noop()];
    for job in &behind {
        env.enqueue(job).await;
    }
    let mut found = found_behind(&env, &redispatch, &worker).await;
    found.extend(found_behind(&env, &redispatch, &worker).await);
    assert_eq!(found, behind.each_ref().map(|job| job.id));
    let most = DISPATCHED_MAX as usize / 2;
    assert!(known(&env).await < most);
    // One that comes now stays behind those that wait in Postgres.
    let last = env.keyed("one", 1);
    env.enqueue(&last).await;
    for next in line[1..].iter().chain([&last]) {
        assert!(worker.succeed(&running).await);
        redispatch.tick(env.clock.now()).await.unwrap();
        running = worker.one().await;
        assert_eq!(running.job.id, next.id);
        assert!(known(&env).await < most, "{}", known(&env).await);
    }
    assert!(worker.succeed(&running).await);
}

/// The gate at which it waits is not the one that its row names.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_waits_at_the_second_of_its_gates_comes_back_too(pool: PgPool) {
    let (env, redispatch) = env(pool).await;
    let hour = std::time::Duration::from_hours(1);
    let jobs: Vec<NewJob> = (0..30)
        .map(|n| {
            let mut job = env.keyed(&n.to_string(), 1);
            job.spec.rate = Some(Rate {
                key: "rate".to_owned(),
                limit: 5,
                window: hour,
            });
            job
        })
        .collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    let (worker, mut done) = (env.worker(), Vec::new());
    for _ in 0..jobs.len() {
        // Those who hold no place of any key are looked at by a claim for each of them.
        for _ in 0..3 {
            for claimed in worker.claim(8).await {
                assert!(worker.succeed(&claimed).await);
                done.push(claimed.job.id);
            }
            redispatch.tick(env.clock.now()).await.unwrap();
        }
        env.advance(hour);
    }
    assert_eq!(done, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
}
