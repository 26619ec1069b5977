//! Tenants share the slots by their weights, whatever stands in their backlogs.

use std::collections::HashMap;
use std::time::Duration;

use common::config::{Leases, Redis, Secret};
use common::ids::{JobId, TenantId};
use common::job::NewJob;
use common::job::limit::{Limit, Subject};
use common::job::spec::{SlotClass, class_of};
use common::queue::{Acked, Beat, Dispatch, Keeps, Want};
use common::store::claim::Claim;
use common::testing::{TestEnv, TestWorker, leases, light, redis_section};
use sqlx::PgPool;

use crate::slots::ClusterNode;

/// Fills a tenant's backlog in Redis alone: fairness is decided there.
async fn fill(env: &TestEnv, tenant_id: TenantId, count: usize, priority: u8) {
    fill_queues(env, tenant_id, &["default".to_owned()], count, priority).await;
}

/// The same with so many jobs in each of some queues.
async fn fill_queues(env: &TestEnv, tenant_id: TenantId, queues: &[String], count: usize, priority: u8) {
    let of = |queue: &String| {
        let mut job = NewJob {
            tenant_id,
            ..env.noop()
        };
        job.spec.queue.clone_from(queue);
        job.spec.priority = priority;
        Dispatch::from_new(&job)
    };
    let jobs: Vec<Dispatch> = (0..count).flat_map(|_| queues.iter().map(of)).collect();
    env.queue.dispatch(&jobs).await.unwrap();
}

fn queues(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("a{number:04}")).collect()
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
    backlog_of(env, tenant, "default/light").await
}

async fn backlog_of(env: &TestEnv, tenant: TenantId, lane: &str) -> u64 {
    let client = redis::Client::open(env.redis.url.expose()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let key = format!("{}:{{s0}}:b:{lane}:{tenant}", env.redis.prefix);
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
async fn one_job_does_not_wait_for_tenants_whose_backlogs_are_still_being_read(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    // More than two claims read, so that the view finds most of them when the round has begun.
    for _ in 0..2_500 {
        fill(&env, TenantId::new(), 1, 5).await;
    }
    let (worker, single) = (env.worker(), TenantId::new());
    for _ in 0..2 {
        assert_eq!(worker.take(&light(20)).await.unwrap().len(), 20);
    }
    fill(&env, single, 1, 5).await;
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    assert_eq!(backlog(&env, single).await, 0, "not among the next two slots");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_job_does_not_wait_for_tenants_that_waited_with_their_queue(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (busy, single, slow) = (TenantId::new(), TenantId::new(), ["slow".to_owned()]);
    fill(&env, busy, 200, 5).await;
    share(&env, &[busy], 50, 1).await;
    env.queue.set_paused(&slow).await.unwrap();
    let limit = Limit {
        max_running: Some(1_000),
        ..Limit::default()
    };
    let limited = Subject::Queue("slow".to_owned());
    env.queue.tell_limit(&limited, &limit).await.unwrap();
    for _ in 0..100 {
        fill_queues(&env, TenantId::new(), &slow, 1, 5).await;
    }
    share(&env, &[busy], 50, 1).await;
    env.queue.set_paused(&[]).await.unwrap();
    let worker = env.worker();
    assert_eq!(worker.take(&light(10)).await.unwrap().len(), 10);
    fill_queues(&env, single, &slow, 1, 5).await;
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    assert_eq!(
        backlog_of(&env, single, "slow/light").await,
        0,
        "not among the next two slots"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_job_does_not_wait_for_tenants_that_came_just_before_with_more(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (busy, single) = (TenantId::new(), TenantId::new());
    fill(&env, busy, 200, 5).await;
    share(&env, &[busy], 50, 1).await;
    for _ in 0..100 {
        fill(&env, TenantId::new(), 3, 5).await;
    }
    let worker = env.worker();
    assert_eq!(worker.take(&light(10)).await.unwrap().len(), 10);
    fill(&env, single, 1, 5).await;
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    assert_eq!(backlog(&env, single).await, 0, "is not next");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_job_stays_ahead_while_its_queue_is_full(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (busy, single, queue) = (TenantId::new(), TenantId::new(), ["slow".to_owned()]);
    let limited = Subject::Queue("slow".to_owned());
    let running = |max_running| Limit {
        max_running: Some(max_running),
        ..Limit::default()
    };
    env.queue.tell_limit(&limited, &running(1)).await.unwrap();
    fill_queues(&env, busy, &queue, 3, 5).await;
    let worker = env.worker();
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    for _ in 0..10 {
        fill_queues(&env, TenantId::new(), &queue, 3, 5).await;
    }
    fill_queues(&env, single, &queue, 1, 5).await;
    for _ in 0..3 {
        assert_eq!(worker.take(&light(1)).await.unwrap(), []);
    }
    env.queue.tell_limit(&limited, &running(2)).await.unwrap();
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    assert_eq!(backlog_of(&env, single, "slow/light").await, 0, "is not next");
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
async fn many_queues_earn_no_more_than_one(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (many, one) = (TenantId::new(), TenantId::new());
    fill_queues(&env, many, &queues(99), 20, 9).await;
    fill(&env, one, 1_000, 0).await;
    for (rounds, free) in [(100, 1), (20, 30)] {
        let counts = share(&env, &[one], rounds, free).await;
        let half = rounds * free as usize / 2;
        assert!(
            counts[&one].abs_diff(half) <= half / 20 + 1,
            "{counts:?} of {rounds} by {free}"
        );
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn labels_and_limited_queues_earn_no_more_than_one_queue_without(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (many, one) = (TenantId::new(), TenantId::new());
    let labels = ["a", "b", "c"].map(str::to_owned);
    let limit = Limit {
        max_running: Some(1_000),
        ..Limit::default()
    };
    for queue in ["default", "first", "second"] {
        if queue != "default" {
            let queue = Subject::Queue(queue.to_owned());
            env.queue.tell_limit(&queue, &limit).await.unwrap();
        }
        for chosen in 0..8 {
            let chosen: Vec<String> = (0..3)
                .filter(|bit| chosen >> bit & 1 == 1)
                .map(|bit| labels[bit].clone())
                .collect();
            let jobs = (0..50).map(|_| {
                let mut job = env.noop();
                job.tenant_id = many;
                job.class = class_of(SlotClass::Light, &chosen);
                job.spec.queue = queue.to_owned();
                Dispatch::from_new(&job)
            });
            env.queue.dispatch(&jobs.collect::<Vec<_>>()).await.unwrap();
        }
    }
    fill(&env, one, 1_000, 0).await;
    let worker = env.worker();
    for (rounds, free) in [(100, 1), (10, 30)] {
        let before = backlog(&env, one).await;
        for _ in 0..rounds {
            let want = Want {
                labels: labels.to_vec(),
                ..light(free)
            };
            assert_eq!(worker.take(&want).await.unwrap().len(), free as usize);
        }
        let (taken, half) = (before - backlog(&env, one).await, u64::from(free) * rounds / 2);
        assert!(taken.abs_diff(half) <= half / 20 + 1, "{taken} of {rounds} by {free}");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_job_does_not_wait_behind_a_thousand_queues_of_another_tenant(pool: PgPool) {
    let env = TestEnv::with_leases(
        pool,
        &Leases {
            lanes_max: 1_000,
            ..leases()
        },
    )
    .await;
    let (many, single) = (TenantId::new(), TenantId::new());
    fill_queues(&env, many, &queues(1_000), 2, 9).await;
    let worker = env.worker();
    for round in 0..30 {
        assert_eq!(worker.take(&light(16)).await.unwrap().len(), 16);
        fill(&env, single, 1, 0).await;
        assert_eq!(worker.take(&light(2)).await.unwrap().len(), 2);
        assert_eq!(
            backlog(&env, single).await,
            0,
            "not among the next two slots in round {round}"
        );
    }
}

/// Those who serve the one do not wait for those who serve the other, however much slower they are.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn slots_of_different_workers_have_different_times(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (old, new) = (TenantId::new(), TenantId::new());
    let (fast, slow) = (["fast".to_owned()], ["slow".to_owned()]);
    let serve = |queues: &[String]| Want {
        queues: queues.to_vec(),
        ..light(1)
    };
    fill_queues(&env, old, &slow, 50, 5).await;
    fill_queues(&env, new, &fast, 200, 5).await;
    let worker = env.worker();
    worker.take(&serve(&slow)).await.unwrap();
    for _ in 0..100 {
        worker.take(&serve(&fast)).await.unwrap();
    }
    fill_queues(&env, new, &slow, 1, 5).await;
    for _ in 0..2 {
        worker.take(&serve(&slow)).await.unwrap();
    }
    assert_eq!(backlog_of(&env, new, "slow/light").await, 0);
}

/// What waits with a paused queue keeps nothing from others, and is owed nothing when the queue goes on.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_pause_of_a_queue_earns_no_credit(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (held, other, slow) = (TenantId::new(), TenantId::new(), ["slow".to_owned()]);
    fill_queues(&env, held, &slow, 100, 5).await;
    fill(&env, other, 200, 5).await;
    share(&env, &[other], 4, 1).await;
    env.queue.set_paused(&slow).await.unwrap();
    let before = backlog_of(&env, held, "slow/light").await;
    let counts = share(&env, &[other], 40, 1).await;
    assert_eq!(
        (before, counts[&other]),
        (backlog_of(&env, held, "slow/light").await, 40)
    );
    env.queue.set_paused(&[]).await.unwrap();
    let counts = share(&env, &[other], 40, 1).await;
    assert!(counts[&other].abs_diff(20) <= 1, "{counts:?}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_queues_of_one_tenant_share_by_their_weights(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let tenant = TenantId::new();
    let names = ["heavy", "light", "limited"].map(str::to_owned);
    env.queue.set_queue_weight("heavy", 3).await.unwrap();
    let limit = Limit {
        max_running: Some(1_000),
        ..Limit::default()
    };
    let limited = Subject::Queue("limited".to_owned());
    env.queue.tell_limit(&limited, &limit).await.unwrap();
    fill_queues(&env, tenant, &names, 100, 5).await;
    for (rounds, free) in [(50, 1), (5, 10)] {
        let mut left = Vec::new();
        for name in &names {
            left.push(backlog_of(&env, tenant, &format!("{name}/light")).await);
        }
        share(&env, &[], rounds, free).await;
        for ((name, before), expected) in names.iter().zip(left).zip([30, 10, 10]) {
            let taken = before - backlog_of(&env, tenant, &format!("{name}/light")).await;
            assert!(taken.abs_diff(expected) <= 2, "{taken} of {name} by {free}");
        }
    }
}

/// What was remembered for workers that are gone is forgotten, and one that comes back finds its jobs all the same.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn workers_that_are_gone_leave_nothing_behind(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (queues, worker) = (queues(3), env.worker());
    fill_queues(&env, env.tenant_id, &queues, 2, 5).await;
    let serve = |count: usize, free: u32| Want {
        queues: queues[..count].to_vec(),
        ..light(free)
    };
    assert_eq!(worker.take(&serve(2, 1)).await.unwrap().len(), 1);
    let rings = || async {
        env.contents()
            .await
            .into_keys()
            .filter(|key| key.contains(":ring:"))
            .count()
    };
    assert_eq!(rings().await, 1);
    env.advance(Duration::from_hours(2));
    // The last of the only queue that it serves.
    assert_eq!(worker.take(&serve(1, 1)).await.unwrap().len(), 1);
    assert_eq!(rings().await, 0);
    assert_eq!(worker.take(&serve(2, 9)).await.unwrap().len(), 2);
    assert_eq!(worker.take(&light(9)).await.unwrap().len(), 2);
}

/// Commands of one claim, those of its script included.
async fn claim_commands(env: &TestEnv, worker: &TestWorker) -> u64 {
    let before = env.queue.statistics().await.unwrap().commands;
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    env.queue.statistics().await.unwrap().commands - before
}

/// What nobody serves is looked at once, and not by each claim.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_costs_the_same_beside_a_thousand_lanes_that_nobody_serves(pool: PgPool) {
    let node = ClusterNode::start().await;
    let redis = Redis {
        url: Secret::from(node.url.clone()),
        ..redis_section()
    };
    let leases = Leases {
        lanes_max: 1_000,
        ..leases()
    };
    let env = TestEnv::with(pool, &leases, redis).await;
    let (other, flood) = (TenantId::new(), TenantId::new());
    fill(&env, other, 100, 5).await;
    let worker = env.worker();
    worker.take(&light(1)).await.unwrap();
    let alone = claim_commands(&env, &worker).await;
    for queue in queues(1_000) {
        let mut job = env.noop();
        (job.tenant_id, job.spec.queue) = (flood, queue);
        job.class = class_of(SlotClass::Light, &["nobody".to_owned()]);
        env.queue.dispatch(&[Dispatch::from_new(&job)]).await.unwrap();
    }
    for _ in 0..8 {
        worker.take(&light(1)).await.unwrap();
    }
    assert_eq!(claim_commands(&env, &worker).await, alone);
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
    let mut waker = env.queue.waker(shard, SlotClass::Light);
    waker.wait(Duration::from_secs(5)).await.unwrap();
    let mut calls = 0;
    loop {
        calls += 1;
        let claims = worker.take(&light(1)).await.unwrap();
        if let [claim] = claims.as_slice() {
            assert_eq!(claim.job_id, job.id);
            break;
        }
        assert!(
            waker.wait(Duration::from_millis(200)).await.unwrap(),
            "idle after {calls} claims"
        );
    }
}

/// Fills one queue's backlog of a tenant, and answers with what.
async fn fill_queue(env: &TestEnv, tenant_id: TenantId, queue: &str, count: usize) -> Vec<JobId> {
    let of = |_| {
        let mut job = env.noop();
        (job.tenant_id, job.spec.queue) = (tenant_id, queue.to_owned());
        Dispatch::from_new(&job)
    };
    let jobs: Vec<Dispatch> = (0..count).map(of).collect();
    env.queue.dispatch(&jobs).await.unwrap();
    jobs.iter().map(Dispatch::job_id).collect()
}

/// A limit of a queue that never binds: it has rings of its own all the same.
async fn limit_loosely(env: &TestEnv, queue: &str) {
    let limit = Limit {
        max_running: Some(1_000),
        ..Limit::default()
    };
    let queue = Subject::Queue(queue.to_owned());
    env.queue.tell_limit(&queue, &limit).await.unwrap();
}

/// Ends what was claimed.
async fn end(env: &TestEnv, claims: &[Claim]) {
    let ended = claims.iter().map(|claim| Acked {
        job_id: claim.job_id,
        attempt: claim.attempt,
        seq: 1,
        keeps: Keeps::Nothing,
    });
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue.ack(shard, &ended.collect::<Vec<_>>()).await.unwrap();
}

/// Whether a tenant gets one of so many slots that are free one after the other.
async fn is_served_within(env: &TestEnv, worker: &TestWorker, tenant: TenantId, slots: usize) -> bool {
    let before = backlog(env, tenant).await;
    for _ in 0..slots {
        assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    }
    backlog(env, tenant).await < before
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_claim_has_released_is_not_lost_when_a_lane_moves_to_another_group(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (tenant, worker) = (TenantId::new(), env.worker());
    // One before the tenant, so that the first claim reads both of its lanes and takes nothing of them.
    let first = fill_queue(&env, TenantId::new(), "default", 1).await;
    let mut expected = fill_queue(&env, tenant, "a", 5).await;
    let gone = fill_queue(&env, tenant, "slow", 5).await;
    let before = worker.take(&light(1)).await.unwrap();
    assert_eq!(before.iter().map(|claim| claim.job_id).collect::<Vec<_>>(), first);
    // The lane still stands with the others, and that of the same name which comes now with the limited queue.
    limit_loosely(&env, "slow").await;
    let gone = gone.into_iter().map(|job_id| (job_id, 1, true)).collect();
    env.queue.cancel_many(tenant, gone).await.unwrap();
    expected.extend(fill_queue(&env, tenant, "slow", 5).await);
    for _ in 0..20 {
        expected.extend(fill_queue(&env, TenantId::new(), "default", 1).await);
    }
    let claims = worker.take(&light(100)).await.unwrap();
    let mut claimed: Vec<JobId> = claims.iter().map(|claim| claim.job_id).collect();
    claimed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(claimed, expected);
    end(&env, &before).await;
    end(&env, &claims).await;
    assert_eq!(worker.take(&light(100)).await.unwrap(), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_who_comes_with_two_jobs_does_not_wait_for_a_round_where_slots_are_held_for_long(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, newcomer) = (env.worker(), TenantId::new());
    for _ in 0..100 {
        fill(&env, TenantId::new(), 3, 5).await;
    }
    let held = worker.take(&light(1)).await.unwrap();
    let fence = [(held[0].job_id, held[0].attempt)];
    let shard = env.queue.shard_of(env.tenant_id);
    // Some are in their second round. Another slot is held all the while: that nothing is released does not mean that
    // nobody works.
    for _ in 0..130 {
        let claims = worker.take(&light(1)).await.unwrap();
        assert_eq!(claims.len(), 1);
        env.advance(Duration::from_secs(2));
        assert_eq!(env.queue.heartbeat(shard, worker.id, &fence).await.unwrap(), [Beat::Ok]);
        end(&env, &claims).await;
    }
    fill(&env, newcomer, 2, 5).await;
    assert!(
        is_served_within(&env, &worker, newcomer, 3).await,
        "not among the next three slots"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_round_does_not_grow_while_it_is_read(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    // More than two claims read, so that the view still reads when the single job comes.
    for _ in 0..3_000 {
        fill(&env, TenantId::new(), 2, 5).await;
    }
    let (worker, single) = (env.worker(), TenantId::new());
    let claims = worker.take(&light(1)).await.unwrap();
    assert_eq!(claims.len(), 1);
    end(&env, &claims).await;
    // So long that nothing is being released any more: the round has begun all the same.
    env.advance(Duration::from_secs(2));
    fill(&env, single, 1, 5).await;
    assert!(
        is_served_within(&env, &worker, single, 5).await,
        "not among the next five slots"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_round_of_one_view_is_not_that_of_another(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    // More than a claim reads: a view that is new finds a round in them.
    for _ in 0..1_100 {
        fill(&env, TenantId::new(), 2, 5).await;
    }
    let (worker, single) = (env.worker(), TenantId::new());
    for _ in 0..10 {
        assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    }
    fill(&env, single, 1, 5).await;
    let elsewhere = Want {
        queues: vec!["elsewhere".to_owned()],
        ..light(1)
    };
    assert_eq!(env.worker().take(&elsewhere).await.unwrap(), []);
    assert!(
        is_served_within(&env, &worker, single, 3).await,
        "not among the next three slots"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_limited_queue_that_comes_and_goes_earns_no_more_than_its_share(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (coming, other, worker) = (TenantId::new(), TenantId::new(), env.worker());
    limit_loosely(&env, "slow").await;
    fill(&env, coming, 200, 5).await;
    fill(&env, other, 200, 5).await;
    // The one that submits has had its turn when it begins to: as it comes back, its time is yet to come.
    assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    let before = backlog(&env, other).await;
    for claim in 0..60 {
        if claim % 3 == 0 {
            fill_queue(&env, coming, "slow", 1).await;
        }
        assert_eq!(worker.take(&light(1)).await.unwrap().len(), 1);
    }
    let taken = before - backlog(&env, other).await;
    assert!(taken.abs_diff(30) <= 3, "{taken} of 60 for the other");
}
