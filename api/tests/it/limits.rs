//! Limits over HTTP: strategies of keys, queues, tenants, agents, paused keys, and what a job says that it waits for.

use std::collections::BTreeMap;

use common::ids::WorkerId;
use common::store::workers::Worker;
use common::testing::{eventually, light};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, SOON};

async fn serve(api: &Api, slots: &[(&str, u32)], labels: &[&str], queues: &[&str]) {
    let worker = Worker {
        id: WorkerId::new(),
        name: "w".to_owned(),
        version: "1".to_owned(),
        slots: slots
            .iter()
            .map(|(slot, count)| ((*slot).to_owned(), *count))
            .collect::<BTreeMap<_, _>>(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
        driver: "docker".to_owned(),
        started_at: api.env.clock.now(),
    };
    api.env.store.register_worker(&worker).await.unwrap();
}

async fn reason(api: &Api, job: &str) -> String {
    let job = api.get(&format!("/jobs/{job}")).await.expect(200);
    job["waiting_for"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a job says that it waits for something that begins so.
async fn says(api: &Api, job: &str, beginning: &str) {
    let mut last = String::new();
    for _ in 0..400 {
        last = reason(api, job).await;
        if last.starts_with(beginning) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{last:?} does not begin with {beginning:?}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_with_reject_is_refused_when_its_key_is_full(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = json!({"kind": "noop", "concurrency": {"key": "k", "strategy": "reject"}});
    let first = api.submit(job.clone()).await;
    api.post("/jobs", job.clone())
        .await
        .is_problem(409, "concurrency_limit");
    let batch = api
        .post("/jobs/batch", json!({"jobs": [{"kind": "noop"}, job.clone()]}))
        .await
        .expect(202);
    assert!(batch["data"][0]["job"].is_object());
    assert_eq!(batch["data"][1]["error"]["code"], "concurrency_limit");
    api.post(&format!("/jobs/{first}/cancel"), json!({})).await.expect(202);
    api.submit(job).await;
    // A repetition is accepted and then meets the same rule.
    let again = api.post(&format!("/jobs/{first}/redrive"), json!({})).await.expect(202);
    let again = api
        .get(&format!("/jobs/{}", again["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(
        (&again["state"], &again["error"]["code"]),
        (&json!("failed"), &json!("concurrency_limit"))
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_with_cancel_running_takes_the_place_of_the_one_before(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = json!({"kind": "noop", "concurrency": {"key": "k", "strategy": "cancel_running"}});
    let first = api.submit(job.clone()).await;
    let worker = api.env.worker();
    let held = eventually(SOON, "the first", async || worker.claim(1).await.pop()).await;
    let second = api.submit(job.clone()).await;
    let third = api.submit(job).await;
    let state = async |id: &str| api.get(&format!("/jobs/{id}")).await.expect(200)["state"].clone();
    assert_eq!(state(&second).await, "cancelled");
    let told = eventually(SOON, "the worker is told", async || {
        let shard = api.env.queue.shard_of(held.job.tenant_id);
        api.env.queue.take_cancels(shard, worker.id).await.unwrap().pop()
    })
    .await;
    assert_eq!(told.to_string(), first);
    assert!(worker.settle(&held, common::job::decision::Decision::Cancel).await);
    let next = eventually(SOON, "the third", async || worker.claim(5).await.pop()).await;
    assert_eq!(next.job.id.to_string(), third);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_queue_has_a_weight_and_limits(pool: PgPool) {
    let api = Api::start(pool).await;
    let patch = json!({"weight": 3, "max_running": 1, "rate": {"limit": 10, "window": "1m"}});
    let queue = api.patch("/queues/slow", patch).await.expect(200);
    assert_eq!(
        (&queue["weight"], &queue["max_running"], &queue["rate"]),
        (&json!(3), &json!(1), &json!({"limit": 10, "window": "1m"}))
    );
    let queue = api.patch("/queues/slow", json!({"rate": null})).await.expect(200);
    assert_eq!(
        (&queue["weight"], &queue["max_running"], &queue["rate"]),
        (&json!(3), &json!(1), &Value::Null)
    );
    assert_eq!(api.get("/queues/slow").await.expect(200), queue);
    serve(&api, &[("light", 5)], &[], &[]).await;
    let jobs = [
        api.submit(json!({"kind": "noop", "queue": "slow"})).await,
        api.submit(json!({"kind": "noop", "queue": "slow"})).await,
    ];
    let worker = api.env.worker();
    eventually(SOON, "the first", async || worker.claim(5).await.pop()).await;
    says(&api, &jobs[1], "the limit of queue slow").await;
    for (bad, place) in [
        (json!({"weight": 0}), "/weight"),
        (json!({"max_running": 0}), "/max_running"),
        (json!({"rate": {"limit": 0, "window": "1m"}}), "/rate/limit"),
        (json!({"rate": {"limit": 1, "window": "soon"}}), "/rate/window"),
        (json!({"colour": 1}), "/colour"),
    ] {
        let answer = api.patch("/queues/slow", bad).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), [place]);
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_queued_job_says_what_it_waits_for(pool: PgPool) {
    let api = Api::start(pool).await;
    let noop = || json!({"kind": "noop"});
    let with = |field: &str, value: Value| {
        let mut job = noop();
        job[field] = value;
        job
    };
    let lone = api.submit(noop()).await;
    assert_eq!(reason(&api, &lone).await, "no worker is running");
    serve(&api, &[("light", 5)], &["eu"], &["default", "slow"]).await;
    says(&api, &lone, "a free slot; position 1").await;
    let second = api.submit(noop()).await;
    says(&api, &second, "a free slot; position 2").await;
    let elsewhere = api.submit(with("queue", json!("nobody"))).await;
    assert_eq!(reason(&api, &elsewhere).await, "no worker serves queue nobody");
    let labelled = api.submit(with("labels", json!(["gpu"]))).await;
    assert!(reason(&api, &labelled).await.ends_with("has the labels gpu"));
    let sandbox = api
        .submit(json!({"kind": "exec", "input": {"language": "bash", "code": "true"}}))
        .await;
    assert_eq!(
        reason(&api, &sandbox).await,
        "no worker of queue default has sandbox slots"
    );
    api.post("/queues/slow/pause", json!({})).await.expect(200);
    let paused = api.submit(with("queue", json!("slow"))).await;
    assert_eq!(reason(&api, &paused).await, "queue slow is paused");
    // Keys, rates, pauses of keys, and the tenant's own limit.
    let key = |key: &str| json!({"key": key});
    let keyed = [
        api.submit(with("concurrency", key("one"))).await,
        api.submit(with("concurrency", key("one"))).await,
    ];
    let rate = json!({"key": "model", "limit": 1, "window": "1h"});
    let rated = [
        api.submit(with("rate", rate.clone())).await,
        api.submit(with("rate", rate)).await,
    ];
    api.post("/paused-keys", json!({"key": "stopped", "reason": "busy"}))
        .await
        .expect(200);
    let stopped = api.submit(with("concurrency", key("stopped"))).await;
    let worker = api.env.worker();
    eventually(SOON, "all are looked at", async || {
        worker.take(&light(50)).await.unwrap();
        reason(&api, &stopped).await.ends_with("is paused").then_some(())
    })
    .await;
    assert_eq!(reason(&api, &keyed[1]).await, "concurrency key one; position 1");
    assert!(
        reason(&api, &rated[1])
            .await
            .starts_with("rate limit of key model until 20")
    );
    assert_eq!(reason(&api, &stopped).await, "concurrency key stopped is paused");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tenant_and_an_agent_are_limited_at_once(pool: PgPool) {
    let api = Api::start(pool).await;
    serve(&api, &[("light", 5)], &[], &[]).await;
    let tenant = api.get("/tenants").await.expect(200)["data"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let patch = json!({"max_running": 1, "run_rate": {"limit": 5, "window": "1s"}});
    let shown = api.patch(&format!("/tenants/{tenant}"), patch).await.expect(200);
    assert_eq!(shown["run_rate"], json!({"limit": 5, "window": "1s"}));
    let jobs = [
        api.submit(json!({"kind": "noop"})).await,
        api.submit(json!({"kind": "noop"})).await,
    ];
    let worker = api.env.worker();
    eventually(SOON, "one", async || worker.claim(5).await.pop()).await;
    says(&api, &jobs[1], "the limit of its tenant").await;
    assert!(worker.claim(5).await.is_empty());
    api.patch(&format!("/tenants/{tenant}"), json!({"max_running": null}))
        .await
        .expect(200);
    eventually(SOON, "the other", async || worker.claim(5).await.pop()).await;
    let paused = api
        .post(&format!("/tenants/{tenant}/pause"), json!({}))
        .await
        .expect(200);
    assert!(paused["paused_at"].is_string());
    let job = api.submit(json!({"kind": "noop"})).await;
    says(&api, &job, "its tenant is paused").await;
    assert!(worker.claim(5).await.is_empty());
    api.post(&format!("/tenants/{tenant}/resume"), json!({}))
        .await
        .expect(200);
    eventually(SOON, "the paused", async || worker.claim(5).await.pop()).await;
    api.patch(
        &format!("/tenants/{tenant}"),
        json!({"run_rate": {"limit": 0, "window": "1s"}}),
    )
    .await
    .is_problem(422, "invalid_request");
    let nobody = "/agents/0197b2f4-0000-7000-8000-000000000000/limits";
    let one = json!({"max_running": 1});
    api.put(nobody, one.clone()).await.is_problem(404, "not_found");
    api.get(nobody).await.is_problem(404, "not_found");
    let agent = json!({"name": "a", "models": ["scripted/echo"], "instructions": "i"});
    let agent = api.post("/agents", agent).await.expect(201);
    let limits = format!("/agents/{}/limits", agent["id"].as_str().unwrap());
    assert_eq!(api.get(&limits).await.expect(200), json!({"max_running": null}));
    api.put(&limits, one.clone()).await.expect(200);
    assert_eq!(api.get(&limits).await.expect(200), one);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn keys_are_paused_and_resumed(pool: PgPool) {
    let api = Api::start(pool).await;
    api.delete("/paused-keys").await.is_problem(422, "invalid_request");
    let paused = api
        .post(
            "/paused-keys",
            json!({"key": "a b/c", "for": "30s", "reason": "Retry-After"}),
        )
        .await;
    let paused = paused.expect(200);
    assert!(paused["until"].is_string());
    assert_eq!(api.get("/paused-keys").await.expect(200)["data"], json!([paused]));
    let job = json!({"kind": "noop", "rate": {"key": "a b/c", "limit": 5, "window": "1s"}});
    let id = api.submit(job).await;
    let worker = api.env.worker();
    eventually(SOON, "it is known", async || {
        worker.take(&light(1)).await.unwrap();
        api.env
            .queue
            .why(api.env.row(id.parse().unwrap()).await.tenant_id, id.parse().unwrap())
            .await
            .unwrap()
    })
    .await;
    assert!(worker.claim(1).await.is_empty());
    let reason = api.get(&format!("/jobs/{id}")).await.expect(200)["waiting_for"].to_string();
    assert!(!reason.contains("rate limit"), "{reason}");
    assert_eq!(api.delete("/paused-keys?key=a%20b%2Fc").await.status, 204);
    eventually(SOON, "it starts", async || worker.claim(1).await.pop()).await;
    api.delete("/paused-keys?key=a%20b%2Fc")
        .await
        .is_problem(404, "not_found");
    for bad in [
        json!({"key": ""}),
        json!({"key": "k", "for": "1s", "until": "2026-12-01T00:00:00Z"}),
        json!({"key": "k", "for": "365d"}),
        json!({}),
    ] {
        api.post("/paused-keys", bad).await.is_problem(422, "invalid_request");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_noop_may_last(pool: PgPool) {
    let api = Api::start(pool).await;
    api.submit(json!({"kind": "noop", "input": {"duration": "50ms", "note": 1}}))
        .await;
    for bad in [json!({"duration": "soon"}), json!({"duration": "90d"})] {
        let answer = api.post("/jobs", json!({"kind": "noop", "input": bad})).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), ["/input/duration"]);
    }
}
