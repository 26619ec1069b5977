//! Schedules: what is saved, shown, refused, changed and fired by hand. The scheduler's own tests fire them by the clock.

use common::ids::{JobId, TenantId};
use common::store::fire::Limits;
use common::testing::eventually;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use std::time::Duration;

use crate::fixture::{Api, SOON, answer};

fn noop() -> Value {
    json!({"name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "job": {"kind": "noop"}})
}

async fn created(api: &Api, body: Value) -> Value {
    api.post("/schedules", body).await.expect(201)
}

fn path(schedule: &Value) -> String {
    format!("/schedules/{}", schedule["id"].as_str().unwrap())
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_schedule_is_saved_and_read(pool: PgPool) {
    let api = Api::start(pool).await;
    let body = json!({"name": "n", "cron": "*/5 * * * *", "overlap": "cancel_running", "catch_up": "1h", "jitter": "30s",
        "starts_at": "2199-01-01T00:02:00Z", "ends_at": "2199-01-01T00:10:00Z",
        "job": {"kind": "exec", "priority": 7, "queue": "slow",
            "input": {"command": ["env"], "env": {"TOKEN": "hidden"}}}});
    let answer = api.post("/schedules", body).await;
    let (location, etag) = (answer.headers["location"].clone(), answer.headers["etag"].clone());
    let schedule = answer.expect(201);
    assert_eq!(location, format!("/api/v1{}", path(&schedule)));
    assert_eq!(etag, "\"1\"");
    let expected = json!({"name": "n", "cron": "*/5 * * * *", "timezone": "UTC", "overlap": "cancel_running",
        "catch_up": "1h", "jitter": "30s", "enabled": true, "paused_reason": null, "last_fire": null, "agent_id": null,
        "next_fires": ["2199-01-01T00:05:00Z", "2199-01-01T00:10:00Z"]});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&schedule[field], value, "{field}");
    }
    let job = &schedule["job"];
    assert_eq!(
        (&job["priority"], &job["queue"], &job["timeout"]),
        (&json!(7), &json!("slow"), &json!("1m"))
    );
    assert!(
        job["input"]["env"]["TOKEN"].is_string() && !schedule.to_string().contains("hidden"),
        "{job}"
    );
    let read = api.get(&path(&schedule)).await;
    assert_eq!(read.headers["etag"], "\"1\"");
    assert_eq!(read.expect(200), schedule);
    let listed = api.get("/schedules").await.expect(200);
    assert_eq!(listed["data"][0]["id"], schedule["id"]);
    assert!(
        listed["data"][0]["job"].get("input").is_none(),
        "lists leave out the input"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wrong_field_is_a_422_that_names_it(pool: PgPool) {
    let api = Api::start(pool).await;
    let with = |name: &str, value: Value| {
        let mut body = noop();
        body[name] = value;
        body
    };
    let cases = [
        (json!({}), vec!["/cron", "/job"]),
        (json!([]), vec![""]),
        (with("cron", json!("61 * * * *")), vec!["/cron"]),
        (with("cron", json!("0 0 30 2 *")), vec!["/cron"]),
        (with("cron", json!("* * * * * * *")), vec!["/cron"]),
        (with("cron", json!("\u{0}")), vec!["/cron"]),
        (with("cron", json!("0,".repeat(100_000))), vec!["/cron"]),
        (with("cron", json!(5)), vec!["/cron"]),
        (with("cron", Value::Null), vec!["/cron"]),
        (with("timezone", json!("Mars/Base")), vec!["/timezone"]),
        (with("timezone", json!("")), vec!["/timezone"]),
        (with("name", json!("")), vec!["/name"]),
        (with("name", json!("a\u{0}")), vec!["/name"]),
        (with("name", json!("x".repeat(201))), vec!["/name"]),
        (with("overlap", json!("maybe")), vec!["/overlap"]),
        (with("catch_up", json!("2 years")), vec!["/catch_up"]),
        (with("catch_up", json!("99999999999999999999y")), vec!["/catch_up"]),
        (with("jitter", json!("soon")), vec!["/jitter"]),
        (with("jitter", json!("25h")), vec!["/jitter"]),
        (with("starts_at", json!("-4800-01-01T00:00:00Z")), vec!["/starts_at"]),
        (with("ends_at", json!("tomorrow")), vec!["/ends_at"]),
        (with("surprise", json!(1)), vec!["/surprise"]),
        (with("enabled", json!("yes")), vec!["/enabled"]),
        (
            with("job", json!({"kind": "noop", "priority": 10})),
            vec!["/job/priority"],
        ),
        (with("job", json!({"kind": "noop", "delay": "1s"})), vec!["/job/run_at"]),
        (
            with("job", json!({"kind": "noop", "run_at": "2020-01-01T00:00:00Z"})),
            vec!["/job/run_at"],
        ),
        (
            with("job", json!({"kind": "chat_turn"})),
            vec!["/job/input/conversation_id"],
        ),
        (with("job", json!({"kind": "other"})), vec!["/job/kind"]),
        (with("misfire", json!("some")), vec!["/misfire"]),
        (with("max_fires", json!(0)), vec!["/max_fires"]),
        (with("pause_after_failures", json!(0)), vec!["/pause_after_failures"]),
        (with("at", json!("2199-01-01T00:00")), vec!["/at"]),
        (with("cron", json!("at 2020-01-01T00:00")), vec!["/cron"]),
        (with("ends_at", json!("2020-01-01T00:00:00Z")), vec!["/ends_at"]),
        (
            with(
                "job",
                json!({"kind": "exec", "input": {"command": ["echo", "{{ fired_at }}"]}}),
            ),
            vec!["/job/input/command/1"],
        ),
        (
            with(
                "job",
                json!({"kind": "exec", "input": {"command": ["env"], "env": {"A": "[redacted]"}}}),
            ),
            vec!["/job/input/env/A"],
        ),
        (
            with("job", json!({"kind": "exec", "input": {"language": "no language"}})),
            vec!["/job/input/language"],
        ),
        (with("job", json!(1)), vec!["/job"]),
        (with("input", json!("hi")), vec!["/job"]),
        (json!({"cron": "@daily", "input": "hi"}), vec!["/agent_id"]),
        (
            json!({"cron": "@daily", "agent_id": "01a1fc32-6400-72c3-8633-dc013012e596"}),
            vec!["/input"],
        ),
        (
            json!({"cron": "@dail", "timezone": "X", "jitter": "x", "job": {"kind": "noop", "priority": 11}}),
            vec!["/cron", "/jitter", "/job/priority"],
        ),
        (
            json!({"cron": "@daily", "starts_at": "2030-01-02T00:00:00Z", "ends_at": "2030-01-01T00:00:00Z",
            "overlap": "queue", "job": {"kind": "noop", "concurrency": {"key": "k"}}}),
            vec!["/ends_at", "/job/concurrency"],
        ),
    ];
    for (body, places) in cases {
        let shown: String = body.to_string().chars().take(150).collect();
        let answer = api.post("/schedules", body).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), places, "{shown}: {}", answer.body);
    }
    let cron = api
        .post("/schedules", json!({"cron": "0 0 * * MONDAY", "job": {"kind": "noop"}}))
        .await;
    let detail = cron.body["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("character 9") && detail.contains("did you mean MON?"),
        "{detail}"
    );
    let agent = json!({"cron": "@daily", "agent_id": "01a1fc32-6400-72c3-8633-dc013012e596", "input": "hi"});
    api.post("/schedules", agent).await.is_problem(404, "not_found");
    api.post_bytes("/schedules", "{")
        .await
        .is_problem(400, "malformed_body");
    for id in ["x", "01a1fc32-6400-72c3-8633-dc013012e596"] {
        api.get(&format!("/schedules/{id}")).await.is_problem(404, "not_found");
        api.patch(&format!("/schedules/{id}"), json!({}))
            .await
            .is_problem(404, "not_found");
        api.delete(&format!("/schedules/{id}"))
            .await
            .is_problem(404, "not_found");
        for act in ["pause", "resume", "fire"] {
            api.post(&format!("/schedules/{id}/{act}"), json!({}))
                .await
                .is_problem(404, "not_found");
        }
        api.get(&format!("/schedules/{id}/fires"))
            .await
            .is_problem(404, "not_found");
    }
    assert_eq!(api.get("/schedules?cursor=x&limit=0&y=1").await.places().len(), 3);
    assert_eq!(api.get("/schedules").await.expect(200)["data"], json!([]));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_preview_shows_daylight_saving_and_saves_nothing(pool: PgPool) {
    let api = Api::start(pool).await;
    let berlin =
        json!({"cron": "30 2 * * *", "timezone": "Europe/Berlin", "count": 2, "after": "2026-03-28T12:00:00Z"});
    let preview = api.post("/schedules/preview", berlin).await.expect(200);
    assert_eq!(
        preview["next_fires"],
        json!(["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"])
    );
    assert_eq!(
        preview["local"],
        json!(["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"])
    );
    let five = api
        .post("/schedules/preview", json!({"cron": "every 90s"}))
        .await
        .expect(200);
    assert_eq!(five["next_fires"].as_array().unwrap().len(), 5);
    for (body, place) in [
        (json!({"cron": "x"}), "/cron"),
        (json!({"cron": "@daily", "timezone": "x"}), "/timezone"),
        (json!({"cron": "@daily", "count": 0}), "/count"),
        (json!({"cron": "@daily", "count": 101}), "/count"),
        (json!({"cron": "@daily", "after": "+200000-01-01T00:00:00Z"}), "/after"),
        (json!({"cron": "@daily", "job": {}}), "/job"),
    ] {
        let answer = api.post("/schedules/preview", body).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [place]);
    }
    assert_eq!(api.get("/schedules").await.expect(200)["data"], json!([]));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_change_says_what_changes_and_notices_another(pool: PgPool) {
    let api = Api::start(pool).await;
    let mut body = noop();
    body["jitter"] = json!("10s");
    let schedule = created(&api, body).await;
    let path = path(&schedule);
    let named = api.patch(&path, json!({"name": "other"})).await;
    assert_eq!(named.headers["etag"], "\"2\"");
    let named = named.expect(200);
    for field in ["cron", "timezone", "jitter", "job", "next_fires", "created_at"] {
        assert_eq!(named[field], schedule[field], "{field}");
    }
    let moved = api
        .patch(&path, json!({"cron": "@hourly", "timezone": null, "jitter": null}))
        .await
        .expect(200);
    assert_eq!(
        (&moved["timezone"], &moved["jitter"], &moved["name"]),
        (&json!("UTC"), &json!("0s"), &json!("other"))
    );
    assert_ne!(moved["next_fires"], schedule["next_fires"]);

    let with_tag = |method: Method, tag: &str| api.request(method, &path).header("if-match", tag);
    let stale = answer(with_tag(Method::PATCH, "\"2\"").json(&json!({"name": "stale"}))).await;
    stale.is_problem(412, "precondition_failed");
    answer(with_tag(Method::DELETE, "\"2\""))
        .await
        .is_problem(412, "precondition_failed");
    answer(with_tag(Method::DELETE, "x"))
        .await
        .is_problem(422, "invalid_request");
    answer(with_tag(Method::PATCH, "\"3\"").json(&json!({"name": "fresh"})))
        .await
        .expect(200);
    // Everybody who says nothing about versions gets through, one after the other.
    let edits = (0..4).map(|n| api.patch(&path, json!({"name": format!("edit {n}")})));
    for edit in futures_util::future::join_all(edits).await {
        edit.expect(200);
    }
    assert_eq!(api.get(&path).await.expect(200)["version"], 8);
    api.patch(&path, json!({"cron": "x"}))
        .await
        .is_problem(422, "invalid_request");
    assert_eq!(api.delete(&path).await.status, 204);
    api.get(&path).await.is_problem(404, "not_found");
    api.delete(&path).await.is_problem(404, "not_found");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_paused_schedule_fires_by_hand_alone(pool: PgPool) {
    let api = Api::start(pool).await;
    let schedule = created(&api, noop()).await;
    let path = path(&schedule);
    let paused = api
        .post(&format!("{path}/pause"), json!({"reason": "holidays"}))
        .await
        .expect(200);
    assert_eq!(
        (&paused["enabled"], &paused["paused_reason"]),
        (&json!(false), &json!("holidays"))
    );
    assert_eq!(paused["next_fires"], json!([]));
    api.post(&format!("{path}/pause"), json!({"reason": "\u{0}"}))
        .await
        .is_problem(422, "invalid_request");

    let job = api.post(&format!("{path}/fire"), json!({})).await.expect(202);
    assert_eq!(
        (&job["schedule_id"], &job["state"]),
        (&schedule["id"], &json!("queued"))
    );
    let worker = api.env.worker();
    let claimed = eventually(SOON, "it is dispatched", async || worker.claim(1).await.pop()).await;
    assert_eq!(claimed.job.id.to_string(), job["id"].as_str().unwrap());
    let second = api.post(&format!("{path}/fire"), json!({})).await.expect(202);
    let first_page = api.get(&format!("{path}/fires?limit=1")).await.expect(200);
    let next = first_page["next_cursor"].as_str().unwrap();
    let second_page = api
        .get(&format!("{path}/fires?limit=1&cursor={next}"))
        .await
        .expect(200);
    assert_eq!(first_page["data"][0]["job_id"], second["id"]);
    let fire = &second_page["data"][0];
    assert_eq!(
        (&fire["job_id"], &fire["outcome"], &fire["manual"]),
        (&job["id"], &json!("fired"), &json!(true))
    );
    assert_eq!(second_page["next_cursor"], Value::Null);
    assert_eq!(api.get(&format!("{path}/fires?cursor=AAAA")).await.places(), ["cursor"]);

    let resumed = answer(api.request(Method::POST, &format!("{path}/resume")))
        .await
        .expect(200);
    assert_eq!(
        (&resumed["enabled"], &resumed["paused_reason"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        (&resumed["next_fires"], &resumed["last_fire"]["job_id"]),
        (&schedule["next_fires"], &second["id"])
    );
    let jobs = api
        .get(&format!("/jobs?schedule_id={}", schedule["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(jobs["data"].as_array().unwrap().len(), 2);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_agent_is_run_in_its_version_of_the_fire(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = api
        .post(
            "/agents",
            json!({"name": "a", "harness": "chat", "models": ["scripted/one"]}),
        )
        .await
        .expect(201);
    let agent_id = agent["id"].as_str().unwrap();
    let body = json!({"cron": "@daily", "agent_id": agent_id, "input": "What is new?"});
    let schedule = created(&api, body).await;
    assert_eq!(
        (&schedule["agent_id"], &schedule["input"]),
        (&agent["id"], &json!("What is new?"))
    );
    assert_eq!((&schedule["name"], &schedule["job"]), (&json!("@daily"), &Value::Null));
    api.patch(&format!("/agents/{agent_id}"), json!({"models": ["scripted/two"]}))
        .await
        .expect(200);
    let asked = api
        .patch(&path(&schedule), json!({"input": "What else?"}))
        .await
        .expect(200);
    assert_eq!(
        (&asked["agent_id"], &asked["input"]),
        (&agent["id"], &json!("What else?"))
    );

    let job = api
        .post(&format!("{}/fire", path(&schedule)), json!({}))
        .await
        .expect(202);
    assert_eq!((&job["agent_id"], &job["agent_version"]), (&agent["id"], &json!(2)));
    let job = api
        .get(&format!("/jobs/{}", job["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(
        (&job["kind"], &job["input"]["input"]),
        (&json!("agent_run"), &json!("What else?"))
    );
    assert_eq!(job["input"]["agent"]["models"], json!(["scripted/two"]));

    api.delete(&format!("/agents/{agent_id}")).await;
    api.post(&format!("{}/fire", path(&schedule)), json!({}))
        .await
        .is_problem(409, "conflict");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_was_saved_is_what_the_leader_fires(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let schedule = created(
        &api,
        json!({"cron": "0 0 * * *", "job": {"kind": "exec", "priority": 2,
        "input": {"command": ["true"]}, "metadata": {"a": 1}}}),
    )
    .await;
    let leader = api
        .env
        .store
        .acquire_or_renew("test", uuid::Uuid::now_v7(), Duration::from_hours(48))
        .await
        .unwrap()
        .unwrap();
    let due: chrono::DateTime<chrono::Utc> = schedule["next_fires"][0].as_str().unwrap().parse().unwrap();
    let limits = Limits {
        schedules_max: 10,
        grace: Duration::from_secs(15),
    };
    api.env.store.set_clock_offset(due - api.env.clock.now());
    let fired = eventually(SOON, "it is due", async || {
        let fired = api.env.store.fire_due(&leader, limits).await.unwrap();
        fired.jobs.into_iter().next()
    })
    .await;
    assert_eq!(
        (fired.class.as_str(), fired.spec.priority, fired.input.as_slice()),
        ("sandbox", 2, &br#"{"command":["true"]}"#[..])
    );
    let after = api.get(&path(&schedule)).await.expect(200);
    assert_eq!(after["last_fire"]["fire_at"], schedule["next_fires"][0]);
    assert_eq!(
        after["last_job_id"].as_str().unwrap().parse::<JobId>().unwrap(),
        fired.id
    );
    assert_eq!(after["next_fires"][0], schedule["next_fires"][1]);
    assert_eq!(after["version"], 1, "a fire is no edit");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn another_tenants_schedule_is_not_there(pool: PgPool) {
    let api = Api::start(pool).await;
    let schedule = created(&api, noop()).await;
    let (id, other) = api.tenant(json!({"name": "other"})).await;
    assert!(id.parse::<TenantId>().is_ok());
    let path = path(&schedule);
    other.get(&path).await.is_problem(404, "not_found");
    other
        .patch(&path, json!({"name": "x"}))
        .await
        .is_problem(404, "not_found");
    other.delete(&path).await.is_problem(404, "not_found");
    other.get(&format!("{path}/fires")).await.is_problem(404, "not_found");
    for act in ["pause", "resume", "fire"] {
        other
            .post(&format!("{path}/{act}"), json!({}))
            .await
            .is_problem(404, "not_found");
    }
    assert_eq!(other.get("/schedules").await.expect(200)["data"], json!([]));
    let agent = api
        .post(
            "/agents",
            json!({"name": "a", "harness": "chat", "models": ["scripted/one"]}),
        )
        .await
        .expect(201);
    let body = json!({"cron": "@daily", "agent_id": agent["id"], "input": "x"});
    other.post("/schedules", body).await.is_problem(404, "not_found");
    assert_eq!(api.get(&path).await.expect(200)["version"], 1);
}
