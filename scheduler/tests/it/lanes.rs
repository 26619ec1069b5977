//! More queues of one tenant than Redis may have: the others wait in Postgres.

use std::collections::BTreeSet;

use common::config::Leases;
use common::queue::{Dispatch, Dispatched};
use common::service::Duty;
use common::testing::{TestEnv, ids, leases};
use scheduler::duties::Redispatch;
use sqlx::PgPool;

/// How many of the test's tenant are in Redis.
async fn lanes(env: &TestEnv) -> usize {
    let contents = env.contents().await;
    let of_tenant = |key: &&String| key.contains("}:lanes:");
    contents.keys().find(of_tenant).map_or(0, |key| contents[key].len())
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn jobs_in_more_queues_than_redis_may_have_are_worked_off(pool: PgPool) {
    let leases = Leases {
        lanes_max: 4,
        ..leases()
    };
    let env = TestEnv::with_leases(pool, &leases).await;
    let duty = Redispatch::new(env.store.clone(), env.queue.clone(), leases.dispatched_max);
    let mut jobs = Vec::new();
    for number in 0..22 {
        let mut job = env.noop();
        job.spec.queue = format!("queue-{}", number % 11);
        env.insert(&job).await;
        jobs.push(job);
    }
    let dispatches: Vec<_> = jobs.iter().map(Dispatch::from_new).collect();
    let dispatched = env.queue.dispatch(&dispatches).await.unwrap();
    let added = |dispatched: &&Dispatched| **dispatched == Dispatched::Added;
    assert_eq!((dispatched.iter().filter(added).count(), lanes(&env).await), (8, 4));
    for wiped in [false, true] {
        if wiped {
            env.wipe_redis().await;
            duty.tick(env.clock.now()).await.unwrap();
        }
        assert_eq!(lanes(&env).await, 4);
        let mut crowded_out = Vec::new();
        for job in &jobs[..11] {
            let (queue, class) = (&job.spec.queue, &job.class);
            crowded_out.push(env.queue.is_crowded_out(env.tenant_id, queue, class).await.unwrap());
        }
        assert_eq!(crowded_out.iter().filter(|is_out| **is_out).count(), 7);
    }
    let (worker, mut done) = (env.worker(), BTreeSet::new());
    for _ in 0..30 {
        for claimed in worker.claim(3).await {
            assert!(worker.succeed(&claimed).await);
            done.insert(claimed.job.id);
        }
        duty.tick(env.clock.now()).await.unwrap();
        assert!(lanes(&env).await <= 4);
    }
    assert_eq!(done, jobs.iter().map(|job| job.id).collect());
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// A queue for which there was no room, and that a new job then opens: those that came before it do not wait until it is empty.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_was_left_of_a_queue_comes_before_what_opens_it(pool: PgPool) {
    let leases = Leases {
        lanes_max: 1,
        ..leases()
    };
    let env = TestEnv::with_leases(pool, &leases).await;
    let duty = Redispatch::new(env.store.clone(), env.queue.clone(), leases.dispatched_max);
    let worker = env.worker();
    let (first, mut left, mut opens) = (env.noop(), env.noop(), env.noop());
    for job in [&mut left, &mut opens] {
        job.spec.queue = "other".to_owned();
    }
    env.enqueue(&first).await;
    env.enqueue(&left).await;
    assert!(worker.succeed(&worker.one().await).await);
    env.enqueue(&opens).await;
    duty.tick(env.clock.now()).await.unwrap();
    let claimed = worker.claim(2).await;
    assert_eq!(ids(&claimed), [left.id, opens.id]);
}
