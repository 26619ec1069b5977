//! Taking turns: two ways to write them, one outcome.

use common::ids::{ConversationId, JobId};
use common::job::{Concurrency, Strategy};
use common::message::Message;
use common::store::idempotency::Idempotency;
use common::store::take_turn::{NewTurn, TurnAccepted};
use common::testing::TestEnv;
use futures_util::future::join_all;
use sqlx::PgPool;
use uuid::Uuid;

use super::turns::{conversation, turn};

/// A turn of somebody who has seen the conversation at a position.
fn asked(env: &TestEnv, talk: ConversationId, seen: u64) -> NewTurn {
    NewTurn {
        message: Message::user(format!("Seen at {seen}\0"), env.clock.now()),
        job: turn(env, talk),
        seen,
        reject_if_busy: false,
        idempotency: None,
    }
}

fn keyed(env: &TestEnv, talk: ConversationId, seen: u64, fingerprint: u8) -> NewTurn {
    NewTurn {
        idempotency: Some(Idempotency {
            key: "key".to_owned(),
            fingerprint: [fingerprint; 32],
            refused: Vec::new(),
        }),
        ..asked(env, talk, seen)
    }
}

async fn take(env: &TestEnv, talk: ConversationId, turn: NewTurn) -> JobId {
    match env.store.insert_turn(talk, turn).await.unwrap() {
        TurnAccepted::Inserted(job) => job.id,
        other => unreachable!("{other:?}"),
    }
}

/// Of each message: its position, that of its turn, and whether it is as it was sent.
async fn written(pool: &PgPool, talk: ConversationId) -> Vec<(i64, i64, bool)> {
    sqlx::query_as(
        "select position, turn, role = 'user' and said like 'Seen at _\u{fffd}' and parts::text like '%Seen at %'
         from messages where conversation_id = $1 order by position",
    )
    .bind(talk)
    .fetch_all(pool)
    .await
    .unwrap()
}

async fn jobs(pool: &PgPool, talk: ConversationId) -> Vec<Uuid> {
    sqlx::query_scalar("select id from queued_jobs join jobs using (id) where conversation_id = $1 order by id")
        .bind(talk)
        .fetch_all(pool)
        .await
        .unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn turns_that_come_at_once_are_all_there_in_one_order(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    for _ in 0..20 {
        let talk = conversation(&pool, env.tenant_id).await;
        let taken = join_all((0..5).map(|_| take(&env, talk, asked(&env, talk, 0)))).await;
        let positions: Vec<(i64, i64, bool)> = (1..=5).map(|position| (position, position, true)).collect();
        assert_eq!(written(&pool, talk).await, positions);
        let mut ids: Vec<Uuid> = taken.iter().map(|id| id.uuid()).collect();
        ids.sort();
        assert_eq!(jobs(&pool, talk).await, ids);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_repeated_request_is_answered_with_its_first_turn(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&pool, env.tenant_id).await;
    let other = conversation(&pool, env.tenant_id).await;
    let at_once = join_all((0..4).map(|_| env.store.insert_turn(talk, keyed(&env, talk, 0, 1)))).await;
    let mut inserted = Vec::new();
    let mut repeated = Vec::new();
    for accepted in at_once {
        match accepted.unwrap() {
            TurnAccepted::Inserted(job) => inserted.push(job.id),
            TurnAccepted::Repeated(id) => repeated.push(id),
            other => unreachable!("{other:?}"),
        }
    }
    assert_eq!(inserted.len(), 1);
    assert_eq!(repeated, [inserted[0]; 3]);
    assert_eq!(written(&pool, talk).await, [(1, 1, true)]);
    let again = env.store.insert_turn(talk, keyed(&env, talk, 1, 1)).await.unwrap();
    assert!(
        matches!(again, TurnAccepted::Repeated(id) if id == inserted[0]),
        "{again:?}"
    );
    // The same key with something else, where nothing is open.
    let elsewhere = env.store.insert_turn(other, keyed(&env, other, 0, 2)).await.unwrap();
    assert!(matches!(elsewhere, TurnAccepted::KeyReused), "{elsewhere:?}");
    assert_eq!(written(&pool, other).await, []);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn who_is_busy_or_gone_takes_no_turn(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let talk = conversation(&pool, env.tenant_id).await;
    let first = take(&env, talk, asked(&env, talk, 0)).await;
    for seen in [0, 1] {
        let rejecting = NewTurn {
            reject_if_busy: true,
            ..asked(&env, talk, seen)
        };
        let refused = env.store.insert_turn(talk, rejecting).await.unwrap();
        assert!(matches!(refused, TurnAccepted::Busy), "{refused:?}");
    }
    assert_eq!(jobs(&pool, talk).await, [first.uuid()]);

    // A key of the caller's that one job may have.
    let free = conversation(&pool, env.tenant_id).await;
    let mut exclusive = asked(&env, free, 0);
    exclusive.job.spec.concurrency = Some(Concurrency {
        key: "one".to_owned(),
        limit: 1,
        strategy: Strategy::Reject,
    });
    take(&env, free, exclusive.clone()).await;
    let empty = conversation(&pool, env.tenant_id).await;
    exclusive.job.links.conversation_id = Some(empty);
    exclusive.message = Message::user("x".to_owned(), env.clock.now());
    let refused = env.store.insert_turn(empty, exclusive).await.unwrap();
    assert!(matches!(refused, TurnAccepted::Rejected), "{refused:?}");
    assert_eq!(written(&pool, empty).await, []);

    sqlx::query("update conversations set deleted_at = now() where id = $1")
        .bind(empty)
        .execute(&pool)
        .await
        .unwrap();
    let gone = env.store.insert_turn(empty, asked(&env, empty, 0)).await.unwrap();
    assert!(matches!(gone, TurnAccepted::Gone), "{gone:?}");
}
