//! Queues and workers.

use std::collections::BTreeMap;
use std::time::Duration;

use common::ids::WorkerId;
use common::store::sandboxes::{HeldBack, Sandboxes};
use common::store::workers::Worker;
use common::testing::eventually;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, SOON};

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_paused_queue_gives_nothing_until_it_is_resumed(pool: PgPool) {
    let api = Api::start(pool).await;
    let paused = api.post("/queues/slow/pause", json!({})).await.expect(200);
    assert!(paused["paused_at"].is_string());
    let (held, free) = (
        api.submit(json!({"kind": "noop", "queue": "slow"})).await,
        api.submit(json!({"kind": "noop"})).await,
    );
    let worker = api.env.worker();
    let claimed = eventually(SOON, "the free one", async || worker.claim(5).await.pop()).await;
    assert_eq!(claimed.job.id.to_string(), free);
    assert!(worker.claim(5).await.is_empty());
    let again = api.post("/queues/slow/pause", json!({})).await.expect(200);
    assert_eq!(again["paused_at"], paused["paused_at"]);
    let queues = api.get("/queues").await.expect(200);
    let shown: Vec<(&str, u64, u64)> = queues["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|queue| {
            (
                queue["name"].as_str().unwrap(),
                queue["queued"].as_u64().unwrap(),
                queue["running"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(shown, [("default", 0, 1), ("slow", 1, 0)]);
    assert_eq!(
        api.post("/queues/slow/resume", json!({})).await.expect(200)["paused_at"],
        Value::Null
    );
    let claimed = eventually(SOON, "the held one", async || worker.claim(5).await.pop()).await;
    assert_eq!(claimed.job.id.to_string(), held);
    assert_eq!(api.get("/queues/unused").await.expect(200)["queued"], 0);
    for name in ["a%20b", "a%2Fb", "%00", "%ff"] {
        api.post(&format!("/queues/{name}/pause"), json!({}))
            .await
            .is_problem(404, "not_found");
    }
}

/// A worker with two light slots and these labels.
pub(crate) async fn register(api: &Api, labels: &[&str]) -> Worker {
    register_with(api, "light", labels).await
}

/// The same with two slots of that class.
async fn register_with(api: &Api, slot: &str, labels: &[&str]) -> Worker {
    let worker = Worker {
        id: WorkerId::new(),
        name: "w".to_owned(),
        version: "1".to_owned(),
        slots: BTreeMap::from([(slot.to_owned(), 2)]),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        queues: Vec::new(),
        driver: "docker".to_owned(),
        started_at: api.env.clock.now(),
    };
    api.env.store.register_worker(&worker).await.unwrap();
    worker
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn workers_are_shown_while_they_live_and_can_be_drained(pool: PgPool) {
    let api = Api::start(pool).await;
    let worker = register(&api, &["gpu"]).await;
    let shown = api.get("/workers").await.expect(200)["data"][0].clone();
    assert_eq!(
        (&shown["id"], &shown["slots"], &shown["draining_at"], &shown["state"]),
        (&json!(worker.id), &json!({"light": 2}), &Value::Null, &json!("live"))
    );
    let job = api.submit(json!({"kind": "noop", "labels": ["gpu"]})).await;
    let reason = api.get(&format!("/jobs/{job}")).await.expect(200)["waiting_for"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(!reason.contains("no worker"), "{reason}");
    assert!(reason.starts_with("a free slot"), "{reason}");
    let foreign = api.submit(json!({"kind": "noop", "labels": ["tpu"]})).await;
    let reason = api.get(&format!("/jobs/{foreign}")).await.expect(200)["waiting_for"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(reason.contains("no worker") && reason.contains("tpu"), "{reason}");
    api.post(&format!("/workers/{}/drain", worker.id), json!({}))
        .await
        .expect(202);
    assert!(api.get("/workers").await.expect(200)["data"][0]["draining_at"].is_string());
    let reason = api.get(&format!("/jobs/{job}")).await.expect(200)["waiting_for"].clone();
    assert_eq!(reason, "every worker is draining: none takes a job any more");
    assert!(
        api.env
            .store
            .worker_seen(worker.id, api.env.clock.now(), &[])
            .await
            .unwrap(),
        "it is told"
    );
    api.env.advance(Duration::from_mins(1));
    let silent = api.get("/workers").await.expect(200)["data"][0].clone();
    assert_eq!((&silent["id"], &silent["state"]), (&json!(worker.id), &json!("silent")));
    let reason = api.get(&format!("/jobs/{job}")).await.expect(200)["waiting_for"].clone();
    assert_eq!(reason, "no worker is running", "a silent one does not count");
    let stalled = ["claim light s0".to_owned()];
    let now = api.env.clock.now();
    api.env.store.worker_seen(worker.id, now, &stalled).await.unwrap();
    let shown = api.get("/workers").await.expect(200)["data"][0].clone();
    assert_eq!(
        (&shown["state"], &shown["stalled"]),
        (&json!("draining"), &json!(["claim light s0"]))
    );
    api.env.advance(Duration::from_hours(2));
    assert_eq!(api.get("/workers").await.expect(200)["data"], json!([]));
    api.post(&format!("/workers/{}/drain", WorkerId::new()), json!({}))
        .await
        .is_problem(404, "not_found");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn usage_is_added_up_and_a_budget_says_what_is_spent(pool: PgPool) {
    let api = Api::start(pool).await;
    assert_eq!(api.get("/usage?by=model").await.expect(200)["data"], json!([]));
    for bad in ["by=week", "from=yesterday", "to=-999999-01-01", "x=1"] {
        api.get(&format!("/usage?{bad}")).await.expect(422);
    }
    let by_day = api.get("/usage?from=2026-01-01&to=2026-01-02T00:00:00Z&by=day").await;
    assert_eq!(by_day.expect(200)["data"], json!([]));

    let tenant = api.post("/tenants", json!({"name": "spender"})).await.expect(201);
    let path = format!("/tenants/{}/budget", tenant["id"].as_str().unwrap());
    let none = api.get(&path).await.expect(200);
    assert_eq!(
        (&none["max_cost_usd"], &none["spent_cost_usd"]),
        (&json!(null), &json!("0"))
    );
    let set = api
        .put(
            &path,
            json!({"max_cost_usd": "25.50", "max_output_tokens": null, "window": "month"}),
        )
        .await
        .expect(200);
    assert_eq!(
        (&set["max_cost_usd"], &set["window"]),
        (&json!("25.5"), &json!("month"))
    );
    assert_eq!(api.get(&path).await.expect(200), set);
    for bad in [
        json!({"max_cost_usd": "much", "window": "day"}),
        json!({"max_cost_usd": "-1", "window": "day"}),
        json!({"max_output_tokens": u64::MAX, "window": "day"}),
        json!({"max_cost_usd": "1", "window": "week"}),
    ] {
        api.put(&path, bad).await.expect(422);
    }
    let gone = "/tenants/01890000-0000-7000-8000-000000000000/budget";
    api.put(gone, json!({"max_cost_usd": "1", "window": "day"}))
        .await
        .expect(404);
    api.get(gone).await.expect(404);
    let removed = api
        .put(
            &path,
            json!({"max_cost_usd": null, "max_output_tokens": null, "window": "day"}),
        )
        .await;
    assert_eq!(removed.expect(200)["window"], json!(null));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn agents_conversations_users_and_models_have_budgets(pool: PgPool) {
    let api = Api::start(pool).await;
    let agent = json!({"name": "spender", "models": ["scripted/demo"]});
    let agent = api.post("/agents", agent).await.expect(201);
    let of_agent = format!("/budgets/agent/{}", agent["id"].as_str().unwrap());
    let of_model = "/budgets/model/anthropic%2Fclaude-opus-5";
    for path in [of_agent.as_str(), of_model, "/budgets/user/ann%20b"] {
        api.get(path).await.expect(404);
        let asked = json!({"max_cost_usd": "2.50", "window": "day"});
        let set = api.put(path, asked).await.expect(200);
        assert_eq!(
            (&set["max_cost_usd"], &set["spent_cost_usd"]),
            (&json!("2.5"), &json!("0"))
        );
        assert_eq!(api.get(path).await.expect(200), set);
    }
    let list = api.get("/budgets").await.expect(200);
    let ids: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|budget| &budget["id"])
        .collect();
    assert_eq!(ids, [&agent["id"], &json!("anthropic/claude-opus-5"), &json!("ann b")]);

    let some = json!({"max_output_tokens": 5, "window": "total"});
    for nobody in [
        "/budgets/team/x",
        "/budgets/model/x",
        "/budgets/agent/x",
        "/budgets/tenant/x",
    ] {
        api.put(nobody, some.clone()).await.expect(404);
    }
    let gone = "01890000-0000-7000-8000-000000000000";
    api.put(&format!("/budgets/agent/{gone}"), some.clone())
        .await
        .expect(404);
    api.put(&format!("/budgets/conversation/{gone}"), some)
        .await
        .expect(404);
    api.put(of_model, json!({"window": "day"})).await.expect(422);
    api.delete(of_model).await.expect(204);
    api.delete(of_model).await.expect(404);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn sandboxes_are_shown_with_why_jobs_waited_for_them(pool: PgPool) {
    let api = Api::start(pool).await;
    let worker = register_with(&api, "sandbox", &[]).await;
    assert_eq!(api.get("/sandboxes").await.expect(200)["data"], json!([]));
    let of = Sandboxes {
        environment: "default".to_owned(),
        warm: 5,
        kept: 2,
        cold_starts: BTreeMap::from([("burst".to_owned(), 3)]),
        ..Sandboxes::default()
    };
    api.env.store.say_sandboxes(worker.id, &[of]).await.unwrap();
    let shown = api.get("/sandboxes").await.expect(200)["data"][0].clone();
    assert_eq!(
        (&shown["worker_id"], &shown["environment"]),
        (&json!(worker.id), &json!("default"))
    );
    assert_eq!(
        (&shown["warm"], &shown["kept"], &shown["cold_starts"]),
        (&json!(5), &json!(2), &json!({"burst": 3}))
    );
    let (_, member) = api.tenant(json!({"name": "member"})).await;
    member.get("/sandboxes").await.is_problem(403, "forbidden");
    api.env.advance(Duration::from_mins(1));
    assert_eq!(
        api.get("/sandboxes").await.expect(200)["data"],
        json!([]),
        "a silent worker has none"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_says_when_no_worker_can_start_a_sandbox_for_it(pool: PgPool) {
    let api = Api::start(pool).await;
    let full = register_with(&api, "sandbox", &[]).await;
    let other = register_with(&api, "sandbox", &["gpu"]).await;
    // What another cannot serve does not count, however well it is.
    register_with(&api, "light", &[]).await;
    let say = async |worker: &Worker, warm, held_back| {
        let of = Sandboxes {
            environment: "default".to_owned(),
            warm,
            held_back,
            ..Sandboxes::default()
        };
        api.env.store.say_sandboxes(worker.id, &[of]).await.unwrap();
    };
    let exec = json!({"kind": "exec", "input": {"command": ["true"]}});
    let mut on_gpu = exec.clone();
    on_gpu["labels"] = json!(["gpu"]);
    let (any, on_gpu) = (api.submit(exec).await, api.submit(on_gpu).await);
    let reason = async |job: &str| api.get(&format!("/jobs/{job}")).await.expect(200)["waiting_for"].clone();

    say(&full, 0, Some(HeldBack::Disk)).await;
    assert_eq!(
        reason(&any).await,
        "a free slot; position 1 in the queue",
        "another can"
    );
    say(&other, 0, Some(HeldBack::Disk)).await;
    let disk = "a free slot: no live worker has room left on its disk to start a sandbox; position 1 in the queue";
    assert_eq!((reason(&any).await, reason(&on_gpu).await), (json!(disk), json!(disk)));
    let shown = api.get("/sandboxes").await.expect(200)["data"].clone();
    assert_eq!(shown[0]["held_back"], "disk");
    say(&other, 0, Some(HeldBack::Engine)).await;
    let engine = "a free slot: no live worker's engine answers to start a sandbox; position 1 in the queue";
    assert_eq!(reason(&on_gpu).await, engine);
    assert!(
        reason(&any).await.as_str().unwrap().contains("of no live worker"),
        "each for its reason"
    );
    say(&other, 1, Some(HeldBack::Engine)).await;
    assert_eq!(
        reason(&on_gpu).await,
        "a free slot; position 1 in the queue",
        "one is ready"
    );
    let noop = api.submit(json!({"kind": "noop"})).await;
    assert!(
        !reason(&noop).await.as_str().unwrap().contains("sandbox"),
        "it needs none"
    );
}
