//! What operators have set, as the redispatch duty reads it.

use std::time::Duration;

use chrono::TimeDelta;
use common::ids::TenantId;
use common::job::limit::{Limit, Pause, Subject};
use common::store::limits::Settings;
use common::testing::TestEnv;
use sqlx::PgPool;

/// One that Postgres does not name is 1 again, although nobody could tell Redis so.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn weights_become_those_of_postgres_and_no_others(pool: PgPool) {
    let env = TestEnv::new(pool).await;
    let (kept, other, shard) = (TenantId::new(), TenantId::new(), env.queue.shard_of(env.tenant_id));
    for tenant_id in [env.tenant_id, kept] {
        env.queue.set_weight(tenant_id, 5).await.unwrap();
    }
    env.queue.set_queue_weight("gone", 3).await.unwrap();
    let known = [(shard, env.queue.weights(shard).await.unwrap())].into();
    // Set since then: whoever read what is known before Postgres cannot have seen it.
    env.queue.set_queue_weight("new", 4).await.unwrap();
    let wanted = [(kept, 5), (other, 2)];
    env.queue
        .sync_weights(&known, &wanted, &[("slow".to_owned(), 7)])
        .await
        .unwrap();
    let expected = [
        (kept.to_string(), 5),
        (other.to_string(), 2),
        ("q:new".to_owned(), 4),
        ("q:slow".to_owned(), 7),
    ];
    assert_eq!(env.queue.weights(shard).await.unwrap(), expected.into());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn settings_are_read_by_one_statement_and_a_weight_is_no_limit(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let (now, tenant_id) = (env.clock.now(), env.tenant_id);
    assert_eq!(env.store.settings(now).await.unwrap(), Settings::default());
    for sql in [
        "insert into tenants (id, name, weight, max_running, created_at) values ($1, 'both', 3, 7, $2)",
        "insert into key_pauses (tenant_id, key, until, reason, created_at)
         values ($1, 'over', $2, '', $2), ($1, 'open', null, '', $2)",
    ] {
        sqlx::query(sql).bind(tenant_id).bind(now).execute(&pool).await.unwrap();
    }
    sqlx::query(
        "insert into queues (name, weight, paused_at, run_limit, run_window_ms, created_at) values
            ('weighty', 5, null, null, null, now()), ('paused', 1, now(), null, null, now()), ('slow', 2, now(), 4, 1000, now())",
    )
    .execute(&pool)
    .await
    .unwrap();

    let mut settings = env.store.settings(now + TimeDelta::seconds(1)).await.unwrap();
    settings.limits.sort_by_key(|(subject, _)| format!("{subject:?}"));
    settings.queue_weights.sort_unstable();
    let running = Limit {
        max_running: Some(7),
        ..Limit::default()
    };
    let rate = Limit {
        rate: Some((4, Duration::from_secs(1))),
        ..Limit::default()
    };
    let pause = Limit {
        pause: Some(Pause::Open),
        ..Limit::default()
    };
    let expected = Settings {
        limits: vec![
            (Subject::Key(tenant_id, "open".to_owned()), pause),
            (Subject::Queue("slow".to_owned()), rate),
            (Subject::Tenant(tenant_id), running),
        ],
        paused_queues: vec!["paused".to_owned(), "slow".to_owned()],
        queue_weights: vec![("slow".to_owned(), 2), ("weighty".to_owned(), 5)],
        tenant_weights: vec![(tenant_id, 3)],
    };
    assert_eq!(settings, expected);
}
