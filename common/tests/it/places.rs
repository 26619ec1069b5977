//! Concurrency keys: never more than the limit, and no free place left unused.

use chrono::TimeDelta;
use common::job::NewJob;
use common::job::decision::Decision;
use common::job::limit::{Limit, Pause, Subject};
use common::job::spec::SlotClass;
use common::queue::{Beat, Dispatch, Gate, GateLimit, Want};
use common::testing::{TestEnv, failure, ids, light};
use sqlx::PgPool;

async fn enqueue(env: &TestEnv, jobs: &[&NewJob]) {
    for job in jobs {
        env.enqueue(job).await;
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_limit_is_never_exceeded_and_every_place_is_used(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..10).map(|_| env.keyed("key", 3)).collect();
    enqueue(&env, &jobs.iter().collect::<Vec<_>>()).await;
    let worker = env.worker();
    let mut done = Vec::new();
    let mut running = worker.claim(10).await;
    while !running.is_empty() {
        assert_eq!(running.len(), 3.min(10 - done.len()));
        let first = running.remove(0);
        assert!(worker.succeed(&first).await);
        done.push(first.job.id);
        running.extend(worker.claim(10).await);
    }
    assert_eq!(done, jobs.iter().map(|job| job.id).collect::<Vec<_>>());
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn keys_of_two_tenants_are_two_keys(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let mine = env.keyed("key", 1);
    let other = NewJob {
        tenant_id: common::ids::TenantId::new(),
        ..env.keyed("key", 1)
    };
    enqueue(&env, &[&mine, &other]).await;
    assert_eq!(env.worker().claim(2).await.len(), 2);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_retrying_job_keeps_its_place_and_one_that_ends_gives_it_back(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (first, second) = (env.keyed("key", 1), env.keyed("key", 1));
    enqueue(&env, &[&first, &second]).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    let due = env.clock.now() + TimeDelta::seconds(10);
    assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
    assert_eq!(ids(&worker.claim(2).await), []);
    env.advance(std::time::Duration::from_secs(10));
    assert_eq!(env.promote().await, [first.id]);
    let claimed = worker.one().await;
    assert_eq!((claimed.job.id, claimed.job.attempt), (first.id, 2));
    assert_eq!(ids(&worker.claim(2).await), []);
    assert!(worker.settle(&claimed, Decision::Fail(failure())).await);
    assert_eq!(ids(&worker.claim(2).await), [second.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_place_is_free_again_after_a_cancel_in_every_position(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..4).map(|_| env.keyed("key", 1)).collect();
    enqueue(&env, &jobs.iter().collect::<Vec<_>>()).await;
    let worker = env.worker();
    let cancel = async |job: &NewJob| {
        let job = env
            .store
            .cancel(env.tenant_id, job.id, env.clock.now())
            .await
            .unwrap()
            .unwrap();
        env.queue
            .cancel(env.tenant_id, job.id, job.seq, job.state.is_terminal())
            .await
            .unwrap();
    };
    // While it is retrying.
    let claimed = worker.one().await;
    let due = env.clock.now() + TimeDelta::seconds(10);
    assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
    cancel(&jobs[0]).await;
    // While it waits in the backlog for a place that is free, before anybody has looked.
    cancel(&jobs[1]).await;
    let claimed = worker.one().await;
    assert_eq!(claimed.job.id, jobs[2].id);
    // While it is parked.
    assert_eq!(ids(&worker.claim(1).await), []);
    cancel(&jobs[3]).await;
    assert!(worker.succeed(&claimed).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_waiter_that_is_cancelled_just_when_it_is_let_go_passes_the_place_on(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..3).map(|_| env.keyed("key", 1)).collect();
    enqueue(&env, &jobs.iter().collect::<Vec<_>>()).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    assert_eq!(ids(&worker.claim(5).await), []); // the others are parked now
    assert!(worker.succeed(&claimed).await); // the second is let go, and stands in the backlog
    let second = env
        .store
        .cancel(env.tenant_id, jobs[1].id, env.clock.now())
        .await
        .unwrap()
        .unwrap();
    env.queue
        .cancel(env.tenant_id, second.id, second.seq, true)
        .await
        .unwrap();
    assert_eq!(ids(&worker.claim(5).await), [jobs[2].id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_dropped_claim_gives_its_place_back(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (first, second) = (env.keyed("key", 1), env.keyed("key", 1));
    enqueue(&env, &[&first, &second]).await;
    let worker = env.worker();
    let claims = worker.take(&light(2)).await.unwrap();
    assert_eq!(claims.len(), 1);
    env.store
        .cancel(env.tenant_id, first.id, env.clock.now())
        .await
        .unwrap();
    assert_eq!(ids(&worker.confirm(&claims).await), []);
    assert_eq!(ids(&worker.claim(2).await), [second.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_reclaimed_job_keeps_its_place_until_it_ends(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (first, second) = (env.keyed("key", 1), env.keyed("key", 1));
    enqueue(&env, &[&first, &second]).await;
    let (dead, live) = (env.worker(), env.worker());
    dead.one().await;
    env.advance(env.queue.lease_ttl());
    assert_eq!(env.reclaim().await.len(), 1);
    let claimed = live.claim(5).await;
    assert_eq!(ids(&claimed), [first.id]);
    assert!(live.succeed(&claimed[0]).await);
    let claimed = live.claim(5).await;
    assert_eq!(ids(&claimed), [second.id]);
    assert!(live.succeed(&claimed[0]).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn places_are_rebuilt_after_a_wipe(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let jobs: Vec<NewJob> = (0..4).map(|_| env.keyed("key", 2)).collect();
    enqueue(&env, &jobs.iter().collect::<Vec<_>>()).await;
    let worker = env.worker();
    let running = worker.claim(4).await;
    assert_eq!(running.len(), 2);
    env.wipe_redis().await;
    env.begin().await;
    for claimed in &running {
        assert!(worker.register(claimed).await);
    }
    env.rebuild().await;
    assert_eq!(ids(&worker.claim(4).await), []);
    for claimed in &running {
        assert!(worker.succeed(claimed).await);
    }
    assert_eq!(ids(&worker.claim(4).await), [jobs[2].id, jobs[3].id]);
}

/// Its worker died before it heard of the claim, whose lease had been dropped. Here Redis still knows
/// the job as a queued one, as it does where somebody else was offered it meanwhile.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_place_taken_for_a_worker_that_never_registered_is_not_kept(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let shard = env.queue.shard_of(env.tenant_id);
    let (first, mut second) = (env.keyed("key", 1), env.keyed("key", 1));
    second.spec.priority = 9;
    enqueue(&env, &[&first]).await;
    let (dead, live) = (env.worker(), env.worker());
    let claims = dead.take(&light(1)).await.unwrap();
    env.advance(env.queue.lease_ttl());
    enqueue(&env, &[&second]).await;
    assert!(env.reclaim().await.is_empty());
    let running = live.one().await;
    assert_eq!(running.job.id, second.id);
    assert_eq!(ids(&dead.confirm(&claims).await), [first.id]);
    assert_eq!(env.queue.adopt(shard, &[env.row(first.id).await]).await.unwrap(), 1);
    for _ in 0..2 {
        env.advance(env.queue.lease_ttl() / 2);
        assert_eq!(live.beat(&running).await, Beat::Ok);
    }
    assert_eq!(env.reclaim().await.len(), 1);
    assert_eq!(ids(&live.claim(1).await), []);
    assert!(live.succeed(&running).await);
    let again = live.one().await;
    assert_eq!((again.job.id, again.job.attempt), (first.id, 2));
    assert!(live.succeed(&again).await);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// A concurrency key and a conversation are two keys of one job.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_that_waits_for_two_places_leaves_neither_unused(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let talk = common::ids::ConversationId::new();
    let in_talk = |mut job: NewJob| {
        job.links.conversation_id = Some(talk);
        job
    };
    // In Redis alone: the conversation's own rule in Postgres is tested with the turns.
    let holder = in_talk(env.noop());
    let (both, keyed_only) = (in_talk(env.keyed("key", 1)), env.keyed("key", 1));
    let first_key = env.keyed("key", 1);
    let dispatch = async |job: &NewJob| env.queue.dispatch(&[Dispatch::from_new(job)]).await.unwrap();
    let worker = env.worker();
    dispatch(&holder).await;
    dispatch(&first_key).await;
    let claims = worker.take(&light(5)).await.unwrap();
    assert_eq!(claims.len(), 2);
    dispatch(&both).await;
    dispatch(&keyed_only).await;
    assert_eq!(worker.take(&light(5)).await.unwrap(), []);
    // The key's place is free: `both` is first in line for it, but its conversation is busy.
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue
        .drop_claims(shard, worker.id, &[(first_key.id, 1)])
        .await
        .unwrap();
    let claims = worker.take(&light(5)).await.unwrap();
    assert_eq!(
        claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(),
        [keyed_only.id]
    );
    // The conversation is free now, the key is not.
    env.queue
        .drop_claims(shard, worker.id, &[(holder.id, 1)])
        .await
        .unwrap();
    assert_eq!(worker.take(&light(5)).await.unwrap(), []);
    env.queue
        .drop_claims(shard, worker.id, &[(keyed_only.id, 1)])
        .await
        .unwrap();
    let claims = worker.take(&light(5)).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(), [both.id]);
    env.queue.drop_claims(shard, worker.id, &[(both.id, 1)]).await.unwrap();
    assert_eq!(worker.take(&light(5)).await.unwrap(), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_waiter_of_another_class_is_woken_too(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let first = env.keyed("key", 1);
    let mut second = env.keyed("key", 1);
    second.class = "sandbox".to_owned();
    enqueue(&env, &[&first, &second]).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    assert_eq!(ids(&worker.claim_as(&sandbox()).await), []);
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Sandbox);
    waker.wait(std::time::Duration::from_secs(5)).await.unwrap();
    assert!(worker.succeed(&claimed).await);
    assert!(waker.wait(std::time::Duration::from_secs(10)).await.unwrap());
    assert_eq!(ids(&worker.claim_as(&sandbox()).await), [second.id]);
}

/// A claim lets go whoever may pass a gate that it has passed; workers with other slots must hear of that.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_claim_wakes_those_for_whose_slots_it_lets_one_go(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let pause = Limit {
        pause: Some(Pause::Until(env.clock.now() + TimeDelta::seconds(3))),
        ..Limit::default()
    };
    let key = Subject::Key(env.tenant_id, "key".to_owned());
    env.queue.tell_limit(&key, &pause).await.unwrap();
    let (first, mut waits) = (env.keyed("key", 2), env.keyed("key", 2));
    waits.class = "sandbox".to_owned();
    waits.created_at += TimeDelta::seconds(1);
    enqueue(&env, &[&first, &waits]).await;
    let worker = env.worker();
    assert_eq!(ids(&worker.claim(1).await), []);
    assert_eq!(ids(&worker.claim_as(&sandbox()).await), []);
    env.advance(std::time::Duration::from_secs(4));
    let mut waker = env.queue.waker(env.queue.shard_of(env.tenant_id), SlotClass::Sandbox);
    waker.wait(std::time::Duration::from_secs(5)).await.unwrap();
    assert_eq!(ids(&worker.claim(1).await), [first.id]);
    assert!(waker.wait(std::time::Duration::from_secs(10)).await.unwrap());
    assert_eq!(ids(&worker.claim_as(&sandbox()).await), [waits.id]);
}

/// It stands first in line at a gate whose places are all taken: one of them by itself.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_retry_that_holds_the_place_of_a_paused_key_starts_when_the_pause_ends(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (job, worker) = (env.keyed("key", 1), env.worker());
    env.enqueue(&job).await;
    let claimed = worker.one().await;
    let due = env.clock.now() + TimeDelta::seconds(1);
    assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
    let pause = Limit {
        pause: Some(Pause::Until(env.clock.now() + TimeDelta::seconds(3))),
        ..Limit::default()
    };
    let key = Subject::Key(env.tenant_id, "key".to_owned());
    env.queue.tell_limit(&key, &pause).await.unwrap();
    env.advance(std::time::Duration::from_secs(1));
    env.promote().await;
    assert_eq!(ids(&worker.claim(5).await), []);
    env.advance(std::time::Duration::from_secs(2));
    assert_eq!(ids(&worker.claim(5).await), [job.id]);
}

/// Whoever is kept by a tenant's limit stands in no line, so workers of every class hear of its place, whatever gave it back.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_dispatch_that_gives_back_a_tenants_place_wakes_every_class(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let shard = env.queue.shard_of(env.tenant_id);
    let one = GateLimit {
        running_max: 1,
        ..GateLimit::default()
    };
    let limits = [(Gate::tenant(env.tenant_id), Some(one))];
    env.queue.set_limits(shard, &limits).await.unwrap();
    let (first, mut waits) = (env.noop(), env.noop());
    waits.class = "sandbox".to_owned();
    enqueue(&env, &[&first, &waits]).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    assert_eq!(ids(&worker.claim_as(&sandbox()).await), []);
    let mut waker = env.queue.waker(shard, SlotClass::Sandbox);
    waker.wait(std::time::Duration::from_secs(5)).await.unwrap();
    // Its lease has passed, and it is queued for its next attempt.
    env.advance(std::time::Duration::from_mins(1));
    env.queue.dispatch(&[Dispatch::from_job(&claimed.job)]).await.unwrap();
    assert!(waker.wait(std::time::Duration::from_secs(10)).await.unwrap());
    assert_eq!(ids(&worker.claim_as(&sandbox()).await), [waits.id]);
}

/// Who waits in a queue that releases nothing must not keep a free place from those behind it.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_free_place_goes_past_those_who_wait_in_a_paused_queue(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let of = |queue: &str| {
        let mut job = env.keyed("key", 1);
        queue.clone_into(&mut job.spec.queue);
        job
    };
    let jobs = [of("a"), of("held"), of("held"), of("full"), of("b")];
    let worker = env.worker();
    enqueue(&env, &[&jobs[0]]).await;
    let first = worker.one().await;
    enqueue(&env, &jobs[1..].iter().collect::<Vec<_>>()).await;
    assert_eq!(ids(&worker.claim(5).await), [], "all of them are parked");
    // One queue is paused, and another has no place for more.
    env.queue.set_paused(&["held".to_owned()]).await.unwrap();
    let full = GateLimit {
        running_max: 1,
        ..GateLimit::default()
    };
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue
        .set_limits(shard, &[(Gate::queue("full"), Some(full))])
        .await
        .unwrap();
    let mut stranger = env.noop();
    "full".clone_into(&mut stranger.spec.queue);
    enqueue(&env, &[&stranger]).await;
    let stranger = worker.one().await;

    assert!(worker.succeed(&first).await);
    let last = worker.claim(5).await;
    assert_eq!(ids(&last), [jobs[4].id]);
    // They have lost nothing: as soon as their queues go on, they are first again, one after the other.
    env.queue.set_paused(&[]).await.unwrap();
    assert!(worker.succeed(&stranger).await);
    assert!(worker.succeed(&last[0]).await);
    let mut left: Vec<_> = jobs[1..4].iter().map(|job| job.id).collect();
    while !left.is_empty() {
        let next = worker.claim(5).await;
        assert_eq!(next.len(), 1, "{} are left", left.len());
        left.retain(|id| *id != next[0].job.id);
        assert!(worker.succeed(&next[0]).await);
    }
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

fn sandbox() -> Want {
    Want {
        slot: SlotClass::Sandbox,
        ..light(1)
    }
}

/// Nobody comes for the first in line, so the place is for the next.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_free_place_goes_past_one_that_no_worker_serves(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (first, mut unserved) = (env.keyed("key", 1), env.keyed("key", 1));
    unserved.class = "sandbox".to_owned();
    let others = [env.keyed("key", 1), env.keyed("key", 1)];
    enqueue(&env, &[&first, &unserved, &others[0], &others[1]]).await;
    let worker = env.worker();
    let running = worker.one().await;
    // Somebody comes to it, and parks it behind the first; nobody does after that.
    assert_eq!(ids(&env.worker().claim_as(&sandbox()).await), []);
    env.forget_servers().await;
    assert_eq!(ids(&worker.claim(5).await), []);
    assert!(worker.succeed(&running).await);
    let running = worker.claim(5).await;
    assert_eq!(ids(&running), [others[0].id]);
    // As soon as somebody asks for its like it is the first again.
    assert_eq!(ids(&env.worker().claim_as(&sandbox()).await), []);
    assert!(worker.succeed(&running[0]).await);
    assert_eq!(ids(&worker.claim(5).await), []);
    assert_eq!(ids(&env.worker().claim_as(&sandbox()).await), [unserved.id]);
}

/// Whoever was let go keeps the place for a while only.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_place_that_nobody_takes_is_for_the_next(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (first, mut left) = (env.keyed("key", 1), env.keyed("key", 1));
    left.class = "sandbox".to_owned();
    let last = env.keyed("key", 1);
    enqueue(&env, &[&first, &left, &last]).await;
    let worker = env.worker();
    let claimed = worker.one().await;
    assert_eq!(ids(&worker.claim(5).await), []);
    assert_eq!(ids(&env.worker().claim_as(&sandbox()).await), []);
    // It is its turn, for somebody asked for it just now; but nobody comes back.
    assert!(worker.succeed(&claimed).await);
    assert_eq!(ids(&worker.claim(5).await), []);
    env.advance(std::time::Duration::from_secs(11));
    assert_eq!(ids(&worker.claim(5).await), [last.id]);
}
