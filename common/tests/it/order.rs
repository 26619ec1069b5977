//! Which job comes next: levels, age, queues, classes, labels and pauses.

use std::time::Duration;

use common::job::NewJob;
use common::job::spec::{SlotClass, class_of};
use common::queue::{Dispatch, Want};
use common::testing::{TestEnv, ids, light};
use sqlx::PgPool;

fn level(env: &TestEnv, priority: u8) -> NewJob {
    let mut job = env.noop();
    job.spec.priority = priority;
    job
}

fn in_queue(env: &TestEnv, queue: &str) -> NewJob {
    let mut job = env.noop();
    queue.clone_into(&mut job.spec.queue);
    job
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_higher_level_goes_first_and_the_older_of_one_level(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (low, first, second, high) = (level(&env, 0), level(&env, 5), level(&env, 5), level(&env, 9));
    for job in [&low, &first] {
        env.enqueue(job).await;
    }
    env.advance(Duration::from_millis(5));
    let second = NewJob {
        created_at: env.clock.now(),
        ..second
    };
    for job in [&second, &high] {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let mut order = Vec::new();
    for _ in 0..4 {
        order.extend(ids(&worker.claim(1).await));
    }
    assert_eq!(order, [high.id, first.id, second.id, low.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_level_is_worth_five_minutes_so_that_no_level_starves(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let low = level(&env, 0);
    env.enqueue(&low).await;
    env.advance(Duration::from_secs(9 * 300 - 1));
    let early = level(&env, 9);
    env.enqueue(&early).await;
    env.advance(Duration::from_secs(2));
    let late = level(&env, 9);
    env.enqueue(&late).await;
    let worker = env.worker();
    let mut order = Vec::new();
    for _ in 0..3 {
        order.extend(ids(&worker.claim(1).await));
    }
    assert_eq!(order, [early.id, low.id, late.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_worker_gets_what_its_slots_labels_and_queues_fit(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let labelled = |slot, labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let mut job = env.noop();
        job.class = class_of(slot, &labels);
        job.spec.labels = labels;
        job
    };
    let plain = env.noop();
    let sandbox = labelled(SlotClass::Sandbox, &[]);
    let gpu = labelled(SlotClass::Sandbox, &["gpu"]);
    let both = labelled(SlotClass::Sandbox, &["gpu", "eu"]);
    let other_queue = in_queue(&env, "reports");
    for job in [&plain, &sandbox, &gpu, &both, &other_queue] {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let want = |slot, labels: &[&str], queues: &[&str]| Want {
        free: 10,
        slot,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
        mode: common::queue::Mode::Busy,
    };
    let claim = async |want: Want| {
        let mut found = ids(&worker.claim_as(&want).await);
        found.sort_unstable();
        found
    };
    assert_eq!(claim(want(SlotClass::Light, &[], &["reports"])).await, [other_queue.id]);
    assert_eq!(claim(want(SlotClass::Light, &[], &[])).await, [plain.id]);
    // A label that only begins with a required one is another label.
    assert_eq!(
        claim(want(SlotClass::Sandbox, &["gpu2", "eu"], &[])).await,
        [sandbox.id]
    );
    assert_eq!(claim(want(SlotClass::Sandbox, &["gpu"], &[])).await, [gpu.id]);
    assert_eq!(claim(want(SlotClass::Sandbox, &["eu", "gpu"], &["other"])).await, []);
    assert_eq!(claim(want(SlotClass::Sandbox, &["eu", "gpu"], &[])).await, [both.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_paused_queue_releases_nothing_and_goes_on_when_it_is_resumed(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let admitted = in_queue(&env, "paused");
    let (paused, other) = (in_queue(&env, "paused"), in_queue(&env, "other"));
    let worker = env.worker();
    env.enqueue(&admitted).await;
    env.enqueue(&paused).await;
    // The first is claimed, the second may already be released.
    assert_eq!(ids(&worker.claim(1).await), [admitted.id]);
    env.queue.set_paused(&["paused".to_owned()]).await.unwrap();
    env.enqueue(&other).await;
    assert_eq!(ids(&worker.claim(10).await), [other.id]);
    assert_eq!(ids(&worker.claim(10).await), []);
    env.queue.set_paused(&[]).await.unwrap();
    assert_eq!(ids(&worker.claim(10).await), [paused.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_worker_gets_no_more_than_it_has_room_for(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..9).map(|_| env.noop()).collect();
    for job in &jobs {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    assert_eq!(worker.claim(4).await.len(), 4);
    assert_eq!(worker.take(&light(0)).await.unwrap(), []);
    assert_eq!(worker.claim(4).await.len(), 4);
    assert_eq!(worker.claim(4).await.len(), 1);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_low_level_of_one_queue_is_not_starved_by_a_flood_of_another(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (low, worker) = (in_queue(&env, "quiet"), env.worker());
    let low = NewJob {
        spec: common::job::spec::JobSpec {
            priority: 0,
            ..low.spec.clone()
        },
        ..low
    };
    env.enqueue(&low).await;
    let flood: Vec<NewJob> = (0..200)
        .map(|_| {
            let mut job = in_queue(&env, "flood");
            job.spec.priority = 9;
            job
        })
        .collect();
    for job in &flood {
        env.insert(job).await;
    }
    env.queue
        .dispatch(&flood.iter().map(Dispatch::from_new).collect::<Vec<_>>())
        .await
        .unwrap();
    for claims in 0.. {
        assert!(claims < 100, "the job of the quiet queue starves");
        let claims = worker.take(&light(1)).await.unwrap();
        if claims.iter().any(|claim| claim.job_id == low.id) {
            break;
        }
        env.advance(Duration::from_millis(50));
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_idle_worker_is_woken_by_a_dispatch(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let shard = env.queue.shard_of(env.tenant_id);
    let mut waker = env.queue.waker(shard, SlotClass::Light);
    // The first call connects and asks for a look, for what came before.
    assert!(waker.wait(Duration::from_secs(5)).await.unwrap());
    assert!(!waker.wait(Duration::from_millis(20)).await.unwrap());
    let begun = std::time::Instant::now();
    let (woken, ()) = tokio::join!(waker.wait(Duration::from_secs(20)), async {
        env.enqueue(&env.noop()).await;
    });
    assert!(woken.unwrap() && begun.elapsed() < Duration::from_secs(10));
    // A wake that came while nobody waited is not lost either.
    env.enqueue(&env.noop()).await;
    assert!(waker.wait(Duration::from_secs(20)).await.unwrap());
}

/// Those who could take nothing of it sleep on.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn only_slots_that_have_got_something_are_woken(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let shard = env.queue.shard_of(env.tenant_id);
    let [mut light, mut sandbox] = SlotClass::ALL.map(|slot| env.queue.waker(shard, slot));
    let (soon, now) = (Duration::from_secs(20), Duration::from_millis(20));
    assert!(light.wait(soon).await.unwrap() && sandbox.wait(soon).await.unwrap());
    env.enqueue(&env.noop()).await;
    assert!(light.wait(soon).await.unwrap() && !sandbox.wait(now).await.unwrap());
    // Of a queue that releases nothing nobody hears, until it does.
    env.queue.set_paused(&["default".to_owned()]).await.unwrap();
    assert!(light.wait(soon).await.unwrap() && sandbox.wait(soon).await.unwrap());
    env.enqueue(&env.noop()).await;
    assert!(!light.wait(now).await.unwrap() && !sandbox.wait(now).await.unwrap());
    env.queue.set_paused(&[]).await.unwrap();
    assert!(light.wait(soon).await.unwrap() && sandbox.wait(soon).await.unwrap());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_handout_that_leaves_a_slot_free_leaves_nothing_else(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    for _ in 0..3 {
        env.enqueue(&env.noop()).await;
    }
    let (worker, shard) = (env.worker(), env.queue.shard_of(env.tenant_id));
    let first = env.queue.claim(shard, worker.id, &light(2)).await.unwrap();
    assert_eq!((first.claims.len(), first.has_more), (2, true));
    let second = env.queue.claim(shard, worker.id, &light(2)).await.unwrap();
    assert_eq!((second.claims.len(), second.has_more), (1, false));
}
