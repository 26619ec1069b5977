//! Full backlogs: Redis stays bounded, the rest comes in from Postgres.

use common::config::Leases;
use common::job::NewJob;
use common::queue::{Dispatch, Dispatched};
use common::testing::{TestEnv, ids, leases};
use sqlx::PgPool;

async fn small(pool: PgPool) -> TestEnv {
    TestEnv::with_leases(
        pool,
        &Leases {
            dispatched_max: 10,
            ..leases()
        },
    )
    .await
}

/// As the redispatch duty does.
async fn page_in(env: &TestEnv) -> usize {
    let mut added = 0;
    for (queue, class, tenant_id, _room) in env.queue.spilled_with_room().await.unwrap() {
        let jobs = env.store.queued_of(tenant_id, &queue, &class, 10).await.unwrap();
        let dispatches: Vec<Dispatch> = jobs.iter().map(Dispatch::from_job).collect();
        let dispatched = env.queue.dispatch(&dispatches).await.unwrap();
        added += dispatched
            .iter()
            .filter(|dispatched| **dispatched == Dispatched::Added)
            .count();
        if jobs.len() < 10 {
            env.queue.unspill(&queue, &class, tenant_id).await.unwrap();
        }
    }
    added
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_backlog_larger_than_redis_may_hold_is_worked_off_in_order(pool: PgPool) {
    let env = small(pool).await;
    let jobs: Vec<NewJob> = (0..35).map(|_| env.noop()).collect();
    for job in &jobs {
        env.insert(job).await;
    }
    let dispatched = env
        .queue
        .dispatch(&jobs.iter().map(Dispatch::from_new).collect::<Vec<_>>())
        .await
        .unwrap();
    assert_eq!(
        dispatched
            .iter()
            .filter(|dispatched| **dispatched == Dispatched::Spilled)
            .count(),
        25
    );
    assert_eq!(page_in(&env).await, 0); // there is no room yet
    let worker = env.worker();
    let mut done = Vec::new();
    while done.len() < jobs.len() {
        let claimed = worker.claim(3).await;
        if claimed.is_empty() {
            assert!(page_in(&env).await > 0, "{} of {} done", done.len(), jobs.len());
        }
        for claimed in claimed {
            assert!(worker.succeed(&claimed).await);
            done.push(claimed.job.id);
        }
        page_in(&env).await;
    }
    assert_eq!(done, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
    page_in(&env).await;
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn another_tenants_backlog_has_room_of_its_own(pool: PgPool) {
    let env = small(pool).await;
    for _ in 0..12 {
        env.enqueue(&env.noop()).await;
    }
    let other = NewJob {
        tenant_id: common::ids::TenantId::new(),
        ..env.noop()
    };
    env.insert(&other).await;
    assert_eq!(
        env.queue.dispatch(&[Dispatch::from_new(&other)]).await.unwrap(),
        [Dispatched::Added]
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_was_spilled_survives_a_wipe(pool: PgPool) {
    let env = small(pool).await;
    let jobs: Vec<NewJob> = (0..25).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    env.wipe_redis().await;
    env.rebuild().await;
    let worker = env.worker();
    let mut done = Vec::new();
    loop {
        let claimed = worker.claim(4).await;
        if claimed.is_empty() && page_in(&env).await == 0 {
            break;
        }
        for claimed in &claimed {
            assert!(worker.succeed(claimed).await);
        }
        done.extend(ids(&claimed));
    }
    assert_eq!(done.len(), 25);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}
