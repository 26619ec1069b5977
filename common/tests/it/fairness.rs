//! Tenants share the slots by their weights, whatever stands in their backlogs.

use std::collections::HashMap;

use common::ids::TenantId;
use common::job::NewJob;
use common::queue::Dispatch;
use common::testing::{TestEnv, light};
use sqlx::PgPool;

/// Fills a tenant's backlog in Redis alone: fairness is decided there.
async fn fill(env: &TestEnv, tenant_id: TenantId, count: usize, priority: u8) {
    let jobs: Vec<Dispatch> = (0..count)
        .map(|_| {
            let mut job = NewJob {
                tenant_id,
                ..env.noop()
            };
            job.spec.priority = priority;
            Dispatch::from_new(&job)
        })
        .collect();
    env.queue.dispatch(&jobs).await.unwrap();
}

/// Claims `rounds` times `free` jobs and counts them by tenant. Nothing is asked of Postgres.
async fn share(env: &TestEnv, tenants: &[TenantId], rounds: usize, free: u32) -> HashMap<TenantId, usize> {
    let (worker, mut counts) = (env.worker(), HashMap::new());
    let mut left: HashMap<TenantId, u64> = HashMap::new();
    for tenant in tenants {
        left.insert(*tenant, backlog(env, *tenant).await);
    }
    for _ in 0..rounds {
        assert_eq!(worker.take(&light(free)).await.unwrap().len(), free as usize);
    }
    for tenant in tenants {
        let taken = left[tenant] - backlog(env, *tenant).await;
        counts.insert(*tenant, usize::try_from(taken).unwrap());
    }
    counts
}

async fn backlog(env: &TestEnv, tenant: TenantId) -> u64 {
    let client = redis::Client::open(env.redis.url.expose()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let key = format!("{}:{{s0}}:b:default/light:{tenant}", env.redis.prefix);
    redis::cmd("ZCARD").arg(key).query_async(&mut connection).await.unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_job_does_not_wait_behind_the_backlog_of_another_tenant(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (flood, single) = (TenantId::new(), TenantId::new());
    fill(&env, flood, 10_000, 9).await;
    let worker = env.worker();
    for _ in 0..50 {
        worker.take(&light(1)).await.unwrap();
    }
    let job = NewJob {
        tenant_id: single,
        ..env.noop()
    };
    let job = NewJob {
        spec: common::job::spec::JobSpec {
            priority: 0,
            ..job.spec.clone()
        },
        ..job
    };
    env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap();
    let mut next = Vec::new();
    for _ in 0..2 {
        next.extend(worker.take(&light(1)).await.unwrap());
    }
    assert!(
        next.iter().any(|claim| claim.job_id == job.id),
        "not among the next two slots"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_job_does_not_wait_for_the_first_round_of_many_tenants(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    for _ in 0..200 {
        fill(&env, TenantId::new(), 3, 5).await;
    }
    let worker = env.worker();
    assert_eq!(worker.take(&light(20)).await.unwrap().len(), 20);
    let singles = [TenantId::new(), TenantId::new(), TenantId::new()];
    for single in singles {
        fill(&env, single, 1, 5).await;
    }
    for (number, single) in singles.into_iter().enumerate() {
        assert_eq!(
            backlog(&env, single).await,
            1,
            "those that come later wait for {number}"
        );
        assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
        assert_eq!(backlog(&env, single).await, 0, "{number} is next");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn equal_tenants_get_equal_shares_of_any_backlog(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (large, small) = (TenantId::new(), TenantId::new());
    fill(&env, large, 10_000, 9).await;
    fill(&env, small, 1_000, 0).await;
    let counts = share(&env, &[large, small], 100, 8).await;
    assert!(counts[&large].abs_diff(counts[&small]) <= 16, "{counts:?}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn weights_are_met_within_five_per_cent(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let tenants = [TenantId::new(), TenantId::new(), TenantId::new()];
    for (tenant, weight) in tenants.iter().zip([1, 3, 6]) {
        env.queue.set_weight(*tenant, weight).await.unwrap();
        fill(&env, *tenant, 1_000, 5).await;
    }
    let counts = share(&env, &tenants, 100, 10).await;
    for (tenant, weight) in tenants.iter().zip([1_usize, 3, 6]) {
        assert!(counts[tenant].abs_diff(weight * 100) <= weight * 5 + 10, "{counts:?}");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn idleness_earns_no_credit(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (busy, idle) = (TenantId::new(), TenantId::new());
    fill(&env, busy, 1_000, 5).await;
    share(&env, &[busy], 50, 10).await;
    fill(&env, idle, 400, 5).await;
    let counts = share(&env, &[busy, idle], 20, 10).await;
    assert!(counts[&idle].abs_diff(100) <= 5, "{counts:?}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_that_wait_for_a_place_do_not_hold_up_other_tenants(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (stuck, other) = (TenantId::new(), TenantId::new());
    let jobs: Vec<Dispatch> = (0..3_000)
        .map(|_| {
            let mut job = NewJob {
                tenant_id: stuck,
                ..env.noop()
            };
            job.spec.concurrency = Some(common::job::Concurrency {
                key: "one".to_owned(),
                limit: 1,
                strategy: common::job::Strategy::Queue,
            });
            Dispatch::from_new(&job)
        })
        .collect();
    env.queue.dispatch(&jobs).await.unwrap();
    let (worker, shard) = (env.worker(), env.queue.shard_of(stuck));
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    let job = NewJob {
        tenant_id: other,
        ..env.noop()
    };
    env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap();
    // However long the line of the first tenant is, the claims go on by themselves until the other's job is found.
    let mut waker = env.queue.waker(shard);
    waker.wait(std::time::Duration::from_secs(5)).await.unwrap();
    let mut calls = 0;
    loop {
        calls += 1;
        let claims = worker.take(&light(1)).await.unwrap();
        if let [claim] = claims.as_slice() {
            assert_eq!(claim.job_id, job.id);
            break;
        }
        assert!(
            waker.wait(std::time::Duration::from_millis(200)).await.unwrap(),
            "idle after {calls} claims"
        );
    }
}
