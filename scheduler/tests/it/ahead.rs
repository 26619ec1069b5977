//! What workers hear of schedules that are about to fire.

use std::time::Duration;

use chrono::TimeDelta;
use common::job::Kind;
use common::schedule::Overlap;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::Fixture;

const AHEAD: Duration = Duration::from_secs(20);

async fn due_in(fixture: &Fixture, seconds: i64, kind: Kind, input: Value) {
    let mut schedule = fixture.schedule("0 0 * * *", Overlap::Allow);
    schedule.next_fire_at = Some(fixture.env.clock.now() + TimeDelta::seconds(seconds));
    schedule.target.spec.kind = kind;
    schedule.target.input = serde_json::value::to_raw_value(&input).unwrap();
    fixture.save(&schedule).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn sandboxes_are_counted_by_environment_before_they_are_wanted(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    let exec = |environment: Option<&str>| json!({"code": "\u{0}", "language": "python", "environment": environment});
    for seconds in [1, 19] {
        due_in(&fixture, seconds, Kind::Exec, exec(None)).await;
    }
    due_in(&fixture, 5, Kind::Exec, exec(Some("polyglot"))).await;
    due_in(&fixture, 25, Kind::Exec, exec(None)).await;
    due_in(&fixture, -1, Kind::Exec, exec(None)).await;
    due_in(&fixture, 5, Kind::Noop, json!({})).await;
    let agent = |harness: &str| json!({"input": "go", "agent": {"harness": harness, "environment": "polyglot"}});
    due_in(&fixture, 5, Kind::AgentRun, agent("native")).await;
    due_in(&fixture, 5, Kind::AgentRun, agent("chat")).await;

    let ahead = fixture
        .env
        .store
        .fires_ahead(fixture.env.clock.now(), AHEAD)
        .await
        .unwrap();
    let counts: Vec<_> = ahead.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(counts, [("default", 2), ("polyglot", 2)]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn workers_share_what_is_ahead(pool: PgPool) {
    let fixture = Fixture::new(pool).await;
    for _ in 0..5 {
        due_in(&fixture, 5, Kind::Exec, json!({})).await;
    }
    let now = fixture.env.clock.now();
    for driver in ["docker", "docker", "none"] {
        let id = uuid::Uuid::now_v7();
        sqlx::query(
            "insert into workers (id, name, version, slots, labels, queues, driver, started_at, seen_at)
             values ($1, 'w', '0', '{}', '{}', '{}', $2, $3, $3)",
        )
        .bind(id)
        .bind(driver)
        .bind(now)
        .execute(&fixture.pool)
        .await
        .unwrap();
    }
    let ahead = fixture.env.store.fires_ahead(now, AHEAD).await.unwrap();
    assert_eq!(ahead.get("default"), Some(&3));
}
