//! A turn is offered to the worker that keeps its conversation's sandbox before anybody else gets it.

use std::time::Duration;

use common::ids::ConversationId;
use common::job::NewJob;
use common::job::decision::Decision;
use common::job::spec::SlotClass;
use common::queue::{Handout, Want};
use common::testing::{TestEnv, TestWorker, failure, ids, light};
use sqlx::PgPool;

use crate::turns::{conversation, turn};

const OFFER: Duration = Duration::from_millis(50);

async fn kept(env: &TestEnv, pool: &PgPool, keeper: &TestWorker) -> ConversationId {
    let talk = conversation(pool, env.tenant_id).await;
    let keep = Duration::from_mins(5);
    env.queue.say_kept(env.tenant_id, talk, keeper.id, keep).await.unwrap();
    talk
}

async fn enqueued(env: &TestEnv, talk: ConversationId) -> NewJob {
    let job = turn(env, talk);
    env.enqueue(&job).await;
    job
}

async fn handout(env: &TestEnv, worker: &TestWorker) -> Handout {
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue.claim(shard, worker.id, &light(10)).await.unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_waits_a_moment_for_the_worker_that_keeps_its_sandbox(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (keeper, other) = (env.worker(), env.worker());
    let talk = kept(&env, &pool, &keeper).await;
    for _ in 0..3 {
        let job = enqueued(&env, talk).await;
        let nothing = handout(&env, &other).await;
        assert_eq!(nothing.claims.len(), 0);
        assert!(nothing.opens_in.unwrap() <= OFFER);
        let claimed = keeper.one().await;
        assert_eq!(claimed.job.id, job.id);
        assert!(keeper.succeed(&claimed).await);
        env.queue
            .say_kept(env.tenant_id, talk, keeper.id, Duration::from_mins(5))
            .await
            .unwrap();
    }
    assert_eq!(
        handout(&env, &other).await.opens_in,
        None,
        "nothing is left to wait for"
    );
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_dead_keeper_costs_a_moment_once(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (dead, other) = (env.worker(), env.worker());
    let talk = kept(&env, &pool, &dead).await;
    let job = enqueued(&env, talk).await;
    assert_eq!(ids(&other.claim(10).await), []);
    env.advance(OFFER / 2);
    assert_eq!(ids(&other.claim(10).await), [], "the offer stands");
    env.advance(OFFER / 2);
    let claimed = other.one().await;
    assert_eq!(claimed.job.id, job.id);
    // The turn fails and is tried again: it is not offered a second time.
    let due = env.clock.now();
    assert!(other.settle(&claimed, Decision::RetryAt(due, failure())).await);
    env.promote().await;
    assert_eq!(ids(&env.worker().claim(10).await), [job.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn others_are_served_while_a_turn_is_offered_and_order_is_kept(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (keeper, other) = (env.worker(), env.worker());
    let talk = kept(&env, &pool, &keeper).await;
    let (first, second, noop) = (enqueued(&env, talk).await, enqueued(&env, talk).await, env.noop());
    env.enqueue(&noop).await;
    assert_eq!(ids(&other.claim(10).await), [noop.id]);
    let running = keeper.claim(10).await;
    assert_eq!(ids(&running), [first.id]);
    // It waits for its conversation and not for an offer: whoever ends the first may take it at once.
    assert_eq!(ids(&other.claim(10).await), []);
    assert!(keeper.succeed(&running[0]).await);
    assert_eq!(ids(&keeper.claim(10).await), [second.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_keepers_other_slots_leave_an_offer_alone(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (keeper, other) = (env.worker(), env.worker());
    let talk = kept(&env, &pool, &keeper).await;
    let job = enqueued(&env, talk).await;
    assert_eq!(ids(&other.claim(1).await), []);
    let sandbox = Want {
        slot: SlotClass::Sandbox,
        ..light(10)
    };
    assert_eq!(ids(&keeper.claim_as(&sandbox).await), []);
    assert_eq!(ids(&other.claim(1).await), [], "it is still offered");
    assert_eq!(ids(&keeper.claim(1).await), [job.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wipe_costs_no_more_than_the_sandbox(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (keeper, other) = (env.worker(), env.worker());
    let talk = kept(&env, &pool, &keeper).await;
    let job = enqueued(&env, talk).await;
    assert_eq!(ids(&other.claim(1).await), []);
    env.wipe_redis().await;
    env.open().await;
    env.redispatch().await;
    assert_eq!(ids(&other.claim(1).await), [job.id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_offered_turn_can_be_cancelled(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (keeper, other) = (env.worker(), env.worker());
    let talk = kept(&env, &pool, &keeper).await;
    let job = enqueued(&env, talk).await;
    assert_eq!(ids(&other.claim(1).await), []);
    let cancelled = env.store.cancel(env.tenant_id, job.id, env.clock.now()).await;
    let seq = cancelled.unwrap().unwrap().seq;
    env.queue.cancel(env.tenant_id, job.id, seq, true).await.unwrap();
    env.advance(OFFER);
    assert_eq!(ids(&other.claim(1).await), []);
    assert_eq!(ids(&keeper.claim(1).await), []);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}
