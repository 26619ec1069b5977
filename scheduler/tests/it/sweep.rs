//! Places that nobody would give back.

use std::time::Duration;

use common::ids::{ConversationId, TenantId};
use common::job::NewJob;
use common::job::decision::Decision;
use common::job::spec::{JobSpec, Kind};
use common::job::wait::Wait;
use common::queue::{Among, Appended, Dispatch};
use common::service::Duty;
use common::store::workers::Worker;
use common::testing::{TestEnv, failure, ids};
use scheduler::duties::{Reclaim, Sweep};
use sqlx::PgPool;

use crate::fixture::Fixture;

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_places_of_a_job_that_ended_unheard_are_freed(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, sweep) = (env.worker(), Sweep::new(env.store.clone(), env.queue.clone()));
    let later = env.clock.now() + chrono::TimeDelta::seconds(60);
    for waits in [false, true] {
        let decision = if waits {
            Decision::Wait(Wait::answer())
        } else {
            Decision::RetryAt(later, failure())
        };
        let (first, second) = (env.keyed("key", 1), env.keyed("key", 1));
        env.enqueue(&first).await;
        env.enqueue(&second).await;
        assert!(worker.settle(&worker.one().await, decision).await);
        // It keeps its place as long as it is tried again; one that waits keeps nothing.
        assert_eq!(sweep.tick(env.clock.now()).await.unwrap().changed, 0);
        let mut running = worker.claim(5).await;
        assert_eq!(ids(&running), if waits { vec![second.id] } else { vec![] });
        // Somebody cancels it, and dies before telling Redis.
        let cancelled = env.store.cancel(env.tenant_id, first.id, env.clock.now()).await;
        assert!(cancelled.unwrap().unwrap().state.is_terminal());
        assert_eq!(ids(&worker.claim(5).await), []);
        let freed = sweep.tick(env.clock.now()).await.unwrap().changed;
        assert_eq!(freed, u64::from(!waits));
        running.extend(worker.claim(5).await);
        assert_eq!(ids(&running), [second.id]);
        let claimed = running.remove(0);
        assert!(worker.succeed(&claimed).await);
        assert_eq!(sweep.tick(env.clock.now()).await.unwrap().changed, 0);
    }
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// However long the index is, and however many of its entries are nobody's.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_place_is_free_within_one_sweep(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (worker, sweep) = (env.worker(), Sweep::new(env.store.clone(), env.queue.clone()));
    let (first, second) = (env.keyed("key", 1), env.keyed("key", 1));
    env.enqueue(&first).await;
    env.enqueue(&second).await;
    let later = env.clock.now() + chrono::TimeDelta::seconds(60);
    assert!(
        worker
            .settle(&worker.one().await, Decision::RetryAt(later, failure()))
            .await
    );
    for _ in 0..3 {
        let tenant_id = TenantId::new();
        let crowd = (0..8_000).map(|_| {
            let job = NewJob {
                tenant_id,
                class: "sandbox".to_owned(),
                ..env.noop()
            };
            Dispatch::from_new(&job)
        });
        env.queue.dispatch(&crowd.collect::<Vec<_>>()).await.unwrap();
    }
    let cancelled = env.store.cancel(env.tenant_id, first.id, env.clock.now()).await;
    assert!(cancelled.unwrap().unwrap().state.is_terminal());
    assert_eq!(sweep.tick(env.clock.now()).await.unwrap().changed, 1);
    assert_eq!(ids(&worker.claim(5).await), [second.id]);
}

/// What a worker committed just before it died: its lease passes, and its turn has ended.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_next_turn_begins_although_the_worker_of_the_one_before_died_with_its_end(pool: PgPool) {
    let fixture = Fixture::new(pool.clone()).await;
    let (env, talk) = (&fixture.env, ConversationId::new());
    sqlx::query(
        "insert into conversations (id, tenant_id, agent, metadata, created_at, updated_at)
         values ($1, $2, '{}', '{}', now(), now())",
    )
    .bind(talk)
    .bind(env.tenant_id)
    .execute(&pool)
    .await
    .unwrap();
    let turn = || {
        let mut job = env.job(JobSpec::new(Kind::ChatTurn), b"{}".to_vec());
        job.links.conversation_id = Some(talk);
        job
    };
    let (first, mut second) = (turn(), turn());
    second.spec.priority = 9;
    let (worker, reclaim) = (env.worker(), Reclaim::new(env.store.clone(), env.queue.clone()));
    env.enqueue(&first).await;
    env.enqueue(&second).await;
    // Redis hands out the second, and Postgres refuses it.
    assert_eq!(ids(&worker.claim(1).await), []);
    let claimed = worker.one().await;
    let settlement = worker.settlement(&claimed, Decision::Succeed, &[]);
    let committed = env.store.settle(worker.id, &[settlement]).await.unwrap();
    assert_eq!(committed.changed.len(), 1);
    env.advance(env.queue.lease_ttl());
    assert_eq!(reclaim.tick(env.clock.now()).await.unwrap().changed, 1);
    assert_eq!(ids(&worker.claim(1).await), [second.id]);
}

/// Many entries are looked at over several ticks, and no open job is touched.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_long_index_is_swept_in_parts(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (sweep, reclaim) = (
        Sweep::new(env.store.clone(), env.queue.clone()),
        Reclaim::new(env.store.clone(), env.queue.clone()),
    );
    for _ in 0..300 {
        let mut job = env.keyed("key", 1);
        job.spec.concurrency.as_mut().unwrap().key = job.id.to_string();
        env.enqueue(&job).await;
    }
    let ended = env.keyed("key", 1);
    env.enqueue(&ended).await;
    env.store
        .cancel(env.tenant_id, ended.id, env.clock.now())
        .await
        .unwrap();
    let shard = env.queue.shard_of(env.tenant_id);
    let (next, found) = env.queue.strays(shard, Among::All, 0, 50).await.unwrap();
    assert!(next != 0 && found.len() < 200, "{next} {}", found.len());
    assert_eq!(sweep.tick(env.clock.now()).await.unwrap().changed, 1);
    reclaim.tick(env.clock.now()).await.unwrap();
    // A claim hands out so many at most, and the next one goes on.
    let worker = env.worker();
    let claimed = worker.claim(300).await.len() + worker.claim(300).await.len();
    assert_eq!(claimed, 300);
}

/// Redis alone does not hear a worker that holds more than a look takes: it says in Postgres that it lives.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_living_worker_holds_hides_nothing_of_one_that_died(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let reclaim = Reclaim::new(env.store.clone(), env.queue.clone());
    let (living, dead) = (env.worker(), env.worker());
    let row = Worker {
        id: living.id,
        name: "living".to_owned(),
        version: "0".to_owned(),
        slots: std::collections::BTreeMap::new(),
        labels: Vec::new(),
        queues: Vec::new(),
        driver: "none".to_owned(),
        started_at: env.clock.now(),
    };
    env.store.register_worker(&row).await.unwrap();
    for _ in 0..250 {
        env.enqueue(&env.noop()).await;
    }
    let held = living.claim(250).await;
    assert_eq!(held.len(), 250);
    env.advance(Duration::from_millis(10));
    let job = env.noop();
    env.enqueue(&job).await;
    assert_eq!(ids(&dead.claim(1).await), [job.id]);
    env.advance(env.queue.lease_ttl());
    let until = env.clock.now() + chrono::TimeDelta::seconds(6);
    env.store.worker_alive_until(living.id, until).await.unwrap();
    // One tick may have time for a part of them.
    let mut ticks = 0;
    while env.row(job.id).await.losses == 0 && ticks < 5 {
        reclaim.tick(env.clock.now()).await.unwrap();
        ticks += 1;
    }
    assert_eq!(env.row(job.id).await.losses, 1, "after {ticks} ticks");
    assert!(living.register(&held[0]).await);
}

/// A worker that registers after a wipe, and dies before it has said again what Redis lost.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_registered_worker_took_with_it_is_announced(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let reclaim = Reclaim::new(env.store.clone(), env.queue.clone());
    for says_it_again in [false, true] {
        env.enqueue(&env.noop()).await;
        let worker = env.worker();
        let claimed = worker.one().await;
        let said = worker.said(&claimed, 3);
        assert_eq!(worker.append(&claimed, claimed.job.seq - 1, &said).await, Appended::Ok);
        env.wipe_redis().await;
        env.rebuild().await;
        assert!(worker.register(&claimed).await);
        if says_it_again {
            assert_eq!(worker.append(&claimed, claimed.job.seq - 1, &said).await, Appended::Ok);
        }
        env.advance(env.queue.lease_ttl());
        assert_eq!(reclaim.tick(env.clock.now()).await.unwrap().changed, 1);
        let events = env.events(env.tenant_id, claimed.job.id, 100).await;
        let is_announced = events.iter().any(|event| event.body.name() == "resume_gap");
        assert_eq!(is_announced, !says_it_again, "{events:?}");
        assert!(worker_takes_it_over(&env).await);
    }
}

/// Redis was wiped, wrote its file before the leader had seen it, and comes back with that file when the worker dies.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_file_without_a_generation_holds_is_no_word_of_an_attempt(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let reclaim = Reclaim::new(env.store.clone(), env.queue.clone());
    env.enqueue(&env.noop()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    env.wipe_redis().await;
    assert!(worker.register(&claimed).await);
    let said = worker.said(&claimed, 3);
    let before = claimed.job.seq - 1;
    assert_eq!(worker.append(&claimed, before, &said[..1]).await, Appended::Ok);
    let saved = env.save_redis().await;
    assert_eq!(worker.append(&claimed, before + 1, &said[1..]).await, Appended::Ok);

    env.advance(Duration::from_millis(1));
    env.roll_back_redis(&saved).await;
    env.rebuild().await;
    env.advance(env.queue.lease_ttl());
    assert_eq!(
        reclaim.tick(env.clock.now()).await.unwrap().changed,
        0,
        "a lease begins"
    );
    env.advance(env.queue.lease_ttl());
    assert_eq!(reclaim.tick(env.clock.now()).await.unwrap().changed, 1);
    let events = env.events(env.tenant_id, claimed.job.id, 100).await;
    let names: Vec<&str> = events.iter().map(|event| event.body.name()).collect();
    assert!(names.contains(&"resume_gap"), "{events:?}");
    assert!(worker_takes_it_over(&env).await);
}

async fn worker_takes_it_over(env: &TestEnv) -> bool {
    let worker = env.worker();
    let claimed = worker.one().await;
    worker.succeed(&claimed).await
}
