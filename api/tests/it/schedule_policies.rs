//! Schedules over HTTP: once, turns, templates, limits, backfill, export and import.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, answer};

fn id(of: &Value) -> String {
    of["id"].as_str().unwrap().to_owned()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_schedule_fires_once_at_a_time_on_the_wall(pool: PgPool) {
    let api = Api::start(pool).await;
    let body = json!({"at": "2090-07-01T09:00", "timezone": "Europe/Berlin", "max_fires": 3, "pause_after_failures": 2,
        "misfire": "last", "overlap": "queue_all", "job": {"kind": "noop"}});
    let schedule = api.post("/schedules", body).await.expect(201);
    assert_eq!(schedule["cron"], "at 2090-07-01T09:00");
    assert_eq!(schedule["next_fires"], json!(["2090-07-01T07:00:00Z"]));
    for (field, value) in [
        ("max_fires", json!(3)),
        ("fired", json!(0)),
        ("pause_after_failures", json!(2)),
        ("failures_in_row", json!(0)),
        ("misfire", json!("last")),
    ] {
        assert_eq!(schedule[field], value, "{field}");
    }
    let path = format!("/schedules/{}", id(&schedule));
    let changed = api
        .patch(
            &path,
            json!({"cron": "@daily", "max_fires": 2, "pause_after_failures": null}),
        )
        .await
        .expect(200);
    assert_eq!(changed["next_fires"].as_array().unwrap().len(), 2, "no more are left");
    assert_eq!(changed["pause_after_failures"], Value::Null);
    let past = api.patch(&path, json!({"at": "2001-01-01T00:00:00Z"})).await;
    past.is_problem(422, "invalid_request");
    assert_eq!(past.places(), ["/cron"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_turn_is_taken_and_shown(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = json!({"name": "a", "harness": "chat", "models": ["scripted/one"]});
    let agent = api.post("/agents", agent).await.expect(201);
    let talk = api
        .post("/conversations", json!({"agent_id": id(&agent)}))
        .await
        .expect(201);
    let body = json!({"cron": "@daily", "conversation_id": id(&talk), "input": "It is {{ fire_at_local }}"});
    let schedule = api.post("/schedules", body).await.expect(201);
    assert_eq!(schedule["conversation_id"], talk["id"]);
    assert_eq!(
        (&schedule["input"], &schedule["job"]),
        (&json!("It is {{ fire_at_local }}"), &Value::Null)
    );
    let path = format!("/schedules/{}", id(&schedule));
    let job = api.post(&format!("{path}/fire"), json!({})).await.expect(202);
    assert_eq!(
        (&job["kind"], &job["conversation_id"], &job["agent_id"]),
        (&json!("chat_turn"), &talk["id"], &agent["id"])
    );
    let messages = api
        .get(&format!("/conversations/{}/messages", id(&talk)))
        .await
        .expect(200);
    let text = messages["data"][0]["parts"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with("It is 2") && text.contains('T'), "{text}");

    let whole = json!({"job": {"kind": "chat_turn", "priority": 7,
        "input": {"conversation_id": id(&talk), "parts": [{"type": "text", "text": "hello"}]}}});
    let whole = api.patch(&path, whole).await.expect(200);
    assert_eq!((&whole["job"]["priority"], &whole["input"]), (&json!(7), &Value::Null));
    assert_eq!(whole["job"]["input"]["conversation_id"], talk["id"]);
    for (body, places) in [
        (json!({"conversation_id": id(&talk)}), vec!["/input"]),
        (
            json!({"conversation_id": id(&talk), "agent_id": id(&agent), "input": "x"}),
            vec!["/conversation_id"],
        ),
        (
            json!({"conversation_id": id(&talk), "input": "{{ fire }}"}),
            vec!["/parts/0/text"],
        ),
        (
            json!({"job": {"kind": "chat_turn", "input": {"conversation_id": id(&talk)}}}),
            vec!["/job/input/text"],
        ),
        (
            json!({"job": {"kind": "chat_turn", "input": {"conversation_id": id(&talk), "text": "x"}, "delay": "1s"}}),
            vec!["/job/run_at"],
        ),
    ] {
        let mut body = body;
        body["cron"] = json!("@daily");
        let refused = api.post("/schedules", body.clone()).await;
        assert_eq!(refused.places(), places, "{body}: {}", refused.body);
    }
    let (_, other) = api.tenant(json!({"name": "other"})).await;
    let foreign = json!({"cron": "@daily", "conversation_id": id(&talk), "input": "x"});
    other.post("/schedules", foreign).await.is_problem(404, "not_found");
    let deleted = answer(api.request(Method::DELETE, &format!("/conversations/{}", id(&talk)))).await;
    assert_eq!(deleted.status, 204);
    api.post(&format!("{path}/fire"), json!({}))
        .await
        .is_problem(409, "conflict");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_range_is_backfilled_once(pool: PgPool) {
    let api = Api::start(pool).await;
    let body = json!({"cron": "0 * * * *", "job": {"kind": "exec", "input": {"command": ["echo", "{{ fire_at }}"]}}});
    let schedule = api.post("/schedules", body).await.expect(201);
    let path = format!("/schedules/{}/backfill", id(&schedule));
    let range = |from: &str, to: &str| json!({"from": from, "to": to});
    let mut june = range("2026-06-01T00:00:00Z", "2026-06-01T05:00:00Z");
    june["dry_run"] = json!(true);
    let counted = api.post(&path, june.clone()).await.expect(202);
    assert_eq!((&counted["matched"], &counted["fired"]), (&json!(5), &json!(0)));
    june["dry_run"] = json!(false);
    let done = api.post(&path, june.clone()).await.expect(202);
    assert_eq!((&done["matched"], &done["fired"]), (&json!(5), &json!(5)));
    let first = api
        .get(&format!("/jobs/{}", done["job_ids"][0].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(first["input"]["command"], json!(["echo", "2026-06-01T00:00:00Z"]));
    assert_eq!(api.post(&path, june).await.expect(202)["fired"], 0);
    let fires = api
        .get(&format!("/schedules/{}/fires", id(&schedule)))
        .await
        .expect(200);
    let latest = &fires["data"][0];
    assert_eq!(
        (&latest["fire_at"], &latest["backfill"], &latest["job_state"]),
        (&json!("2026-06-01T04:00:00Z"), &json!(true), &json!("queued"))
    );
    for (body, places) in [
        (range("2026-06-01T00:00:00Z", "2090-06-01T00:00:00Z"), vec!["/to"]),
        (range("2026-06-01T00:00:00Z", "2026-06-01T00:00:00Z"), vec!["/to"]),
        (range("2020-01-01T00:00:00Z", "2026-06-01T00:00:00Z"), vec!["/to"]),
        (range("1960-01-01T00:00:00Z", "1971-01-01T00:00:00Z"), vec!["/from"]),
    ] {
        assert_eq!(api.post(&path, body).await.places(), places);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_export_can_be_imported_here_and_elsewhere(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let job = json!({"kind": "exec", "priority": 3, "input": {"command": ["env"], "env": {"TOKEN": "hidden"}}});
    let body = json!({"name": "a", "cron": "0 4 * * *", "timezone": "Asia/Tokyo", "job": job, "jitter": "5s"});
    let schedule = api.post("/schedules", body).await.expect(201);
    let path = format!("/schedules/{}", id(&schedule));
    api.post(
        "/schedules",
        json!({"name": "b", "cron": "every 90s", "job": {"kind": "noop"}}),
    )
    .await
    .expect(201);
    let export = api.get("/schedules/export?limit=1").await.expect(200);
    assert_eq!(export["schedules"].as_array().unwrap().len(), 1);
    let mut export = api.get("/schedules/export").await.expect(200);
    assert_eq!((&export["version"], &export["next_cursor"]), (&json!(1), &Value::Null));
    assert!(!export.to_string().contains("hidden"));

    let again = api.post("/schedules/import", export.clone()).await.expect(200);
    assert_eq!((&again["created"], &again["updated"]), (&json!(0), &json!(2)));
    let job = api.post(&format!("{path}/fire"), json!({})).await.expect(202);
    let job_id: uuid::Uuid = job["id"].as_str().unwrap().parse().unwrap();
    let kept = sqlx::query_scalar("select input from jobs where id = $1").bind(job_id);
    let kept: Vec<u8> = kept.fetch_one(&pool).await.unwrap();
    assert!(
        String::from_utf8(kept).unwrap().contains("hidden"),
        "what was hidden is kept"
    );

    let (_, other) = api.tenant(json!({"name": "other"})).await;
    let refused = other.post("/schedules/import", export.clone()).await;
    assert_eq!(refused.places(), ["/schedules/1/job/input/env/TOKEN"]);
    export["schedules"][1]["job"]["input"]["env"]["TOKEN"] = json!("mine");
    export["dry_run"] = json!(true);
    let checked = other.post("/schedules/import", export.clone()).await.expect(200);
    assert_eq!(checked["created"], 2);
    assert_eq!(other.get("/schedules").await.expect(200)["data"], json!([]));
    export["dry_run"] = json!(false);
    let made = other.post("/schedules/import", export.clone()).await.expect(200);
    assert!(
        !made["ids"].as_array().unwrap().contains(&schedule["id"]),
        "an id that is taken is not taken again"
    );
    let there = other.get("/schedules/export").await.expect(200);
    assert_eq!(there["schedules"].as_array().unwrap().len(), 2);

    export["schedules"][0]["cron"] = json!("61 * * * *");
    export["schedules"][1]["colour"] = json!("red");
    let refused = other.post("/schedules/import", export.clone()).await;
    refused.is_problem(422, "invalid_request");
    export["schedules"][1].as_object_mut().unwrap().remove("colour");
    let refused = other.post("/schedules/import", export).await;
    assert_eq!(refused.places(), ["/schedules/0/cron"]);
    for body in [
        json!({"schedules": []}),
        json!({"version": 2, "schedules": [{}]}),
        json!({"schedules": [{"id": 5}]}),
    ] {
        other
            .post("/schedules/import", body)
            .await
            .is_problem(422, "invalid_request");
    }
    assert_eq!(
        other.get("/schedules").await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}
