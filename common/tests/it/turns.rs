//! Turns of one conversation: one at a time, and in the order of their messages.

use common::cancel::{Canceller, OPEN};
use common::ids::{ConversationId, TenantId};
use common::job::NewJob;
use common::job::decision::Decision;
use common::job::spec::{JobSpec, Kind};
use common::store::claim::Claim;
use common::store::list::Filter;
use common::testing::{TestEnv, failure, ids, light};
use sqlx::PgPool;

pub(crate) async fn conversation(pool: &PgPool, tenant_id: TenantId) -> ConversationId {
    let id = ConversationId::new();
    sqlx::query("insert into tenants (id, name, created_at) values ($1, $2, now()) on conflict do nothing")
        .bind(tenant_id)
        .bind(tenant_id.to_string())
        .execute(pool)
        .await
        .unwrap();
    sqlx::query(
        "insert into conversations (id, tenant_id, agent, metadata, created_at, updated_at)
         values ($1, $2, '{}', '{}', now(), now())",
    )
    .bind(id)
    .bind(tenant_id)
    .execute(pool)
    .await
    .unwrap();
    id
}

async fn active(pool: &PgPool, talk: ConversationId) -> Option<uuid::Uuid> {
    let sql = "select active_job_id from conversations where id = $1";
    sqlx::query_scalar(sql).bind(talk).fetch_one(pool).await.unwrap()
}

pub(crate) fn turn(env: &TestEnv, conversation_id: ConversationId) -> NewJob {
    let mut job = env.job(JobSpec::new(Kind::ChatTurn), b"{}".to_vec());
    job.links.conversation_id = Some(conversation_id);
    job
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_at_a_time_and_in_order_through_retries_and_losses(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (talk, other) = (
        conversation(&pool, env.tenant_id).await,
        conversation(&pool, env.tenant_id).await,
    );
    let turns = [turn(&env, talk), turn(&env, talk), turn(&env, talk)];
    let elsewhere = turn(&env, other);
    for job in turns.iter().chain([&elsewhere]) {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let running = worker.claim(10).await;
    assert_eq!(ids(&running), [turns[0].id, elsewhere.id]);
    // A retry keeps the conversation.
    assert!(
        worker
            .settle(&running[0], Decision::RetryAt(env.clock.now(), failure()))
            .await
    );
    assert_eq!(ids(&worker.claim(10).await), []);
    assert_eq!(env.promote().await, [turns[0].id]);
    let running = worker.claim(10).await;
    assert_eq!(ids(&running), [turns[0].id]);
    // So does a lost worker.
    env.advance(env.queue.lease_ttl());
    env.reclaim().await;
    let second = env.worker();
    let running = second.claim(10).await;
    assert!(ids(&running).contains(&turns[0].id) && !ids(&running).contains(&turns[1].id));
    let first = running.iter().find(|claimed| claimed.job.id == turns[0].id).unwrap();
    assert!(
        !worker
            .succeed(&common::store::claim::Claimed {
                job: first.job.clone(),
                input: Vec::new()
            })
            .await
    );
    assert!(second.succeed(first).await);
    let next = second.claim(10).await;
    assert_eq!(ids(&next), [turns[1].id]);
    assert!(second.settle(&next[0], Decision::Cancel).await);
    assert_eq!(ids(&second.claim(10).await), [turns[2].id]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn postgres_alone_keeps_the_order_when_redis_hands_out_the_wrong_one(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&pool, env.tenant_id).await;
    let older = turn(&env, talk);
    let mut newer = turn(&env, talk);
    newer.spec.priority = 9; // its score is lower, so Redis offers it first
    env.enqueue(&older).await;
    env.enqueue(&newer).await;
    let worker = env.worker();
    let claims = worker.take(&light(2)).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(), [newer.id]);
    assert_eq!(ids(&worker.confirm(&claims).await), []);
    let claimed = worker.claim(2).await;
    assert_eq!(ids(&claimed), [older.id]);
    // The refused one is queued in Postgres alone, until the one before it has ended.
    assert_eq!(ids(&worker.claim(2).await), []);
    assert!(worker.succeed(&claimed[0]).await);
    assert_eq!(ids(&worker.claim(2).await), [newer.id]);
}

/// Two turns, of which Redis handed out the second, and Postgres refused it.
async fn refused(env: &TestEnv, pool: &PgPool) -> [NewJob; 2] {
    let talk = conversation(pool, env.tenant_id).await;
    let mut turns = [turn(env, talk), turn(env, talk)];
    "before".clone_into(&mut turns[0].spec.queue);
    env.insert(&turns[0]).await;
    env.enqueue(&turns[1]).await;
    assert_eq!(ids(&env.worker().claim(1).await), []);
    turns
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_end_of_a_turn_that_nobody_runs_brings_the_next_on(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (worker, now) = (env.worker(), env.clock.now());
    let canceller = Canceller::new(env.store.clone(), env.queue.clone());
    for one_by_one in [true, false] {
        let [before, next] = refused(&env, &pool).await;
        if one_by_one {
            canceller.make_way(&[(env.tenant_id, before.id)], now).await;
        } else {
            let filter = Filter {
                queue: Some("before".to_owned()),
                ..Filter::default()
            };
            let clock = env.clock.clock();
            let all = canceller.matching(env.tenant_id, &filter, &OPEN, &clock, None).await;
            assert_eq!(all.unwrap().matched, 1);
        }
        let claimed = worker.one().await;
        assert_eq!(claimed.job.id, next.id);
        assert!(worker.succeed(&claimed).await);
    }
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

/// Whoever ends the first finds the second in the hands of a worker, and believes that it is known.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_that_is_refused_just_when_the_one_before_ends_is_not_forgotten(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&pool, env.tenant_id).await;
    let (older, newer) = (turn(&env, talk), turn(&env, talk));
    let (early, worker, now) = (env.worker(), env.worker(), env.clock.now());
    // Redis does not know the first, as after a wipe.
    env.insert(&older).await;
    let claim = Claim {
        job_id: older.id,
        attempt: 1,
        is_turn: true,
    };
    let running = env.store.claim(worker.id, &[claim], now).await.unwrap().remove(0);
    env.enqueue(&newer).await;
    let claims = early.take(&light(1)).await.unwrap();
    assert!(env.store.claim(early.id, &claims, now).await.unwrap().is_empty());
    assert!(worker.succeed(&running).await);
    assert_eq!(ids(&worker.claim(1).await), []);
    let shard = env.queue.shard_of(env.tenant_id);
    env.queue.drop_claims(shard, early.id, &[(newer.id, 1)]).await.unwrap();
    common::turn::dispatch_next(&env.store, &env.queue, &[newer.id]).await;
    assert_eq!(ids(&worker.claim(1).await), [newer.id]);
    // While it runs nothing is next, however often that is asked.
    let last = turn(&env, talk);
    env.insert(&last).await;
    common::turn::dispatch_next(&env.store, &env.queue, &[older.id, newer.id]).await;
    assert_eq!(env.queue.unknown(&[(env.tenant_id, last.id)]).await.unwrap(), [0]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_cancelled_turn_frees_its_conversation(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&pool, env.tenant_id).await;
    let turns = [turn(&env, talk), turn(&env, talk), turn(&env, talk)];
    for job in &turns {
        env.enqueue(job).await;
    }
    let worker = env.worker();
    let claimed = worker.one().await;
    let due = env.clock.now() + chrono::TimeDelta::seconds(60);
    assert!(worker.settle(&claimed, Decision::RetryAt(due, failure())).await);
    for job in &turns[..2] {
        let job = env
            .store
            .cancel(env.tenant_id, job.id, env.clock.now())
            .await
            .unwrap()
            .unwrap();
        env.queue.cancel(env.tenant_id, job.id, job.seq, true).await.unwrap();
    }
    let claimed = worker.claim(5).await;
    assert_eq!(ids(&claimed), [turns[2].id]);
    assert!(worker.succeed(&claimed[0]).await);
    assert_eq!(active(&pool, talk).await, None);
    assert_eq!(env.leftovers().await, Vec::<String>::new());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_that_is_cancelled_between_handout_and_claim_does_not_hold_its_conversation(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&pool, env.tenant_id).await;
    let (first, second) = (turn(&env, talk), turn(&env, talk));
    env.enqueue(&first).await;
    env.enqueue(&second).await;
    let worker = env.worker();
    let claims = worker.take(&light(1)).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.job_id).collect::<Vec<_>>(), [first.id]);
    env.store
        .cancel(env.tenant_id, first.id, env.clock.now())
        .await
        .unwrap();
    assert_eq!(ids(&worker.confirm(&claims).await), []);
    assert_eq!(active(&pool, talk).await, None);
    env.redispatch().await;
    assert_eq!(ids(&worker.claim(2).await), [second.id]);
}
