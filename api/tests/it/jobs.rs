//! The life of a job over HTTP: submitted, read, waited for, cancelled, repeated.

use std::time::{Duration, Instant};

use common::ids::JobId;
use common::job::decision::Decision;
use common::store::egress::Decision as Connected;
use common::testing::{eventually, failure};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::{Api, SOON, answer};

fn id(job: &Value) -> JobId {
    job["id"].as_str().unwrap().parse().unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_is_accepted_dispatched_and_read(pool: PgPool) {
    let api = Api::start(pool).await;
    let accepted = api
        .post(
            "/jobs",
            json!({"kind": "noop", "priority": 9, "metadata": {"a": 1}, "user_id": "u"}),
        )
        .await;
    let location = accepted.headers["location"].to_str().unwrap().to_owned();
    let job = accepted.expect(202);
    assert_eq!(location, format!("/api/v1/jobs/{}", job["id"].as_str().unwrap()));
    let row = api.env.row(id(&job)).await;
    assert_eq!((row.priority, row.queue.as_str(), row.max_attempts), (9, "default", 3));

    let worker = api.env.worker();
    let claimed = eventually(SOON, "the job is dispatched", async || worker.claim(1).await.pop()).await;
    assert_eq!(claimed.job.id, id(&job));
    let running = api.get(&format!("/jobs/{}", id(&job))).await.expect(200);
    assert_eq!(
        (running["state"].as_str(), running["attempt"].as_u64()),
        (Some("running"), Some(1))
    );
    assert!(worker.succeed(&claimed).await);
    let ended = api.get(&format!("/jobs/{}?wait=20s", id(&job))).await.expect(200);
    for field in [
        "id",
        "kind",
        "queue",
        "priority",
        "max_attempts",
        "created_at",
        "queued_at",
        "metadata",
        "user_id",
    ] {
        assert_eq!(ended[field], job[field], "{field}");
    }
    assert_eq!(ended["state"], "succeeded");
    assert!(ended["started_at"].is_string() && ended["finished_at"].is_string() && ended["waiting_for"].is_null());
    let attempts = api.get(&format!("/jobs/{}/attempts", id(&job))).await.expect(200);
    assert_eq!(attempts["data"][0]["outcome"], "succeeded");
    assert_eq!(attempts["data"][0]["worker_id"], worker.id.to_string());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wait_ends_with_the_job(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let worker = api.env.worker();
    let claimed = eventually(SOON, "the job is dispatched", async || worker.claim(1).await.pop()).await;
    let begun = Instant::now();
    let path = format!("/jobs/{job}?wait=20s");
    let wait = api.get(&path);
    let work = async {
        // The waiter must be there first; a level says so, not a pause.
        eventually(SOON, "somebody waits", async || followed(&api).await.then_some(())).await;
        assert!(worker.settle(&claimed, Decision::Fail(failure())).await);
    };
    let (waited, ()) = tokio::join!(wait, work);
    let waited = waited.expect(200);
    assert_eq!(
        (waited["state"].as_str(), waited["error"]["code"].as_str()),
        (Some("failed"), Some("nonzero_exit"))
    );
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// Whether somebody follows a job of this process. Tests share a process only with themselves under nextest.
async fn followed(api: &Api) -> bool {
    let metrics = answer(api.bare(Method::GET, "/metrics")).await.body;
    let metrics = metrics.as_str().unwrap_or_default();
    metrics
        .lines()
        .any(|line| line.starts_with("hothouse_http_followed_jobs ") && !line.ends_with(" 0"))
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_wait_that_is_over_answers_the_job_as_it_is(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let begun = Instant::now();
    let waited = api.get(&format!("/jobs/{job}?wait=300ms")).await.expect(200);
    assert_eq!(waited["state"], "queued");
    assert!((Duration::from_millis(300)..Duration::from_secs(10)).contains(&begun.elapsed()));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_for_later_is_scheduled(pool: PgPool) {
    let api = Api::start(pool).await;
    let delayed = api
        .post("/jobs", json!({"kind": "noop", "delay": "1h"}))
        .await
        .expect(202);
    assert_eq!(delayed["state"], "scheduled");
    assert_eq!(delayed["due_at"], delayed["run_at"]);
    let past = api
        .post("/jobs", json!({"kind": "noop", "run_at": "2020-01-01T00:00:00Z"}))
        .await
        .expect(202);
    assert_eq!(past["state"], "queued");
    let shown = api.get(&format!("/jobs/{}", id(&delayed))).await.expect(200);
    assert!(
        shown["waiting_for"].as_str().unwrap().starts_with("scheduled for"),
        "{shown}"
    );
    assert_eq!(shown["due_at"], delayed["due_at"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_cancelled_job_is_over_in_every_state(pool: PgPool) {
    let api = Api::start(pool).await;
    let (queued, later) = (
        api.submit(json!({"kind": "noop"})).await,
        api.submit(json!({"kind": "noop", "delay": "1h"})).await,
    );
    for job in [&queued, &later] {
        assert_eq!(
            api.post(&format!("/jobs/{job}/cancel"), json!({})).await.expect(202)["state"],
            "cancelled"
        );
        // Again: nothing changes.
        let again = api.post(&format!("/jobs/{job}/cancel"), json!({})).await.expect(202);
        assert_eq!(again["state"], "cancelled");
    }
    let worker = api.env.worker();
    assert!(worker.claim(10).await.is_empty());

    let running = api.submit(json!({"kind": "noop"})).await;
    let claimed = eventually(SOON, "the job is dispatched", async || worker.claim(1).await.pop()).await;
    let asked = api
        .post(&format!("/jobs/{running}/cancel"), json!({}))
        .await
        .expect(202);
    assert_eq!(asked["state"], "running");
    assert!(asked["cancel_requested_at"].is_string());
    let shard = api.env.queue.shard_of(claimed.job.tenant_id);
    assert_eq!(
        api.env.queue.take_cancels(shard, worker.id).await.unwrap(),
        [claimed.job.id]
    );
    assert!(worker.settle(&claimed, Decision::Cancel).await);
    assert_eq!(
        api.get(&format!("/jobs/{running}?wait=10s")).await.expect(200)["state"],
        "cancelled"
    );
    let kept = api.env.leftovers().await;
    assert!(
        !kept
            .iter()
            .any(|key| key.ends_with(":idx") || key.ends_with(":leases") || key.contains(":h:")),
        "{kept:?}"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_redrive_is_a_new_job_that_names_the_old(pool: PgPool) {
    let api = Api::start(pool).await;
    let input = json!({"command": ["true"], "env": {"A": "secret"}});
    let fields = json!({"kind": "exec", "input": input, "queue": "q", "priority": 2, "labels": ["gpu"], "timeout": "90s",
        "retry_on": ["timeout"], "backoff": {"initial": "2s", "factor": 3.0, "max": "1m"}, "max_attempts": 7,
        "concurrency": {"key": "k", "limit": 2, "strategy": "reject"}, "metadata": {"a": [1]}, "user_id": "u"});
    let old = api.submit(fields).await;
    api.post(&format!("/jobs/{old}/redrive"), json!({}))
        .await
        .is_problem(409, "conflict");
    api.post(&format!("/jobs/{old}/cancel"), json!({})).await.expect(202);
    let new = api.post(&format!("/jobs/{old}/redrive"), json!({})).await.expect(202);
    assert_ne!(new["id"], old.as_str());
    assert_eq!(
        (new["redrive_of"].as_str(), new["state"].as_str()),
        (Some(old.as_str()), Some("queued"))
    );
    let (old, new) = (
        api.get(&format!("/jobs/{old}")).await.expect(200),
        api.get(&format!("/jobs/{}", id(&new))).await.expect(200),
    );
    for field in [
        "kind",
        "queue",
        "priority",
        "labels",
        "timeout",
        "retry_on",
        "backoff",
        "max_attempts",
        "concurrency",
        "metadata",
        "user_id",
        "input",
    ] {
        assert_eq!(new[field], old[field], "{field}");
    }
    let detail = api
        .env
        .store
        .job(api.env.row(id(&new)).await.tenant_id, id(&new))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&detail.input).unwrap(), input);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_redrive_that_its_key_refuses_says_so(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = json!({"kind": "noop", "concurrency": {"key": "k", "strategy": "reject"}});
    let old = api.submit(job.clone()).await;
    api.post(&format!("/jobs/{old}/cancel"), json!({})).await.expect(202);
    api.submit(job).await;
    let new = api.post(&format!("/jobs/{old}/redrive"), json!({})).await.expect(202);
    assert_eq!(
        (new["state"].as_str(), new["error"]["code"].as_str()),
        (Some("failed"), Some("concurrency_limit"))
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn many_jobs_are_cancelled_and_repeated_by_a_filter(pool: PgPool) {
    let api = Api::start(pool).await;
    for _ in 0..3 {
        api.submit(json!({"kind": "noop", "queue": "a"})).await;
    }
    let kept = api.submit(json!({"kind": "noop", "queue": "b"})).await;
    let counted = api
        .post("/jobs/cancel", json!({"queue": "a", "dry_run": true}))
        .await
        .expect(200);
    assert_eq!(counted["matched"], 3);
    assert_eq!(api.get("/jobs?state=cancelled").await.expect(200)["data"], json!([]));
    assert_eq!(
        api.post("/jobs/cancel", json!({"queue": "a"})).await.expect(200)["matched"],
        3
    );
    assert_eq!(
        api.get("/jobs?state=cancelled").await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(api.get(&format!("/jobs/{kept}")).await.expect(200)["state"], "queued");

    assert_eq!(
        api.post("/jobs/redrive", json!({"queue": "a"})).await.expect(200)["matched"],
        0,
        "none has failed"
    );
    let redriven = api
        .post("/jobs/redrive", json!({"queue": "a", "state": "cancelled"}))
        .await
        .expect(200);
    assert_eq!(redriven["matched"], 3);
    assert_eq!(
        api.get("/jobs?state=queued&queue=a").await.expect(200)["data"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    // What every job has is no filter either: a variable may have been empty.
    for nothing in [json!({"dry_run": false}), json!({"q": ""}), json!({"metadata": {}})] {
        for path in ["/jobs/cancel", "/jobs/redrive"] {
            api.post(path, nothing.clone()).await.is_problem(422, "invalid_request");
        }
    }
    api.post("/jobs/redrive", json!({"state": "running"}))
        .await
        .is_problem(422, "invalid_request");
    api.post("/jobs/cancel", json!({"q": "\u{0}"}))
        .await
        .is_problem(422, "invalid_request");
    for odd in [
        "+262142-12-31T12:00:00Z",
        "+10000-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "-4800-01-01T00:00:00Z",
    ] {
        for (path, state) in [("/jobs/cancel", "queued"), ("/jobs/redrive", "failed")] {
            let body = json!({"state": state, "created_before": odd});
            let refused = api.post(path, body).await;
            refused.is_problem(422, "invalid_request");
            assert_eq!(refused.places(), ["/created_before"], "{odd}");
        }
    }
    let last = json!({"state": "queued", "queue": "a", "created_before": "9999-12-31T23:59:59Z", "dry_run": true});
    assert_eq!(api.post("/jobs/cancel", last).await.expect(200)["matched"], 3);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_idempotency_key_answers_the_first_job_again(pool: PgPool) {
    let api = Api::start(pool).await;
    let send = async |body: &str, key: &str| {
        let request = api.request(Method::POST, "/jobs").header("idempotency-key", key);
        answer(request.header("content-type", "application/json").body(body.to_owned())).await
    };
    let first = send(r#"{"kind":"noop"}"#, "k1").await.expect(202);
    let again = send(r#"{"kind":"noop"}"#, "k1").await.expect(202);
    assert_eq!(again["id"], first["id"]);
    let other = send(r#"{"kind":"noop","priority":1}"#, "k1").await;
    other.is_problem(422, "idempotency_key_reused");
    assert_ne!(send(r#"{"kind":"noop"}"#, "k2").await.expect(202)["id"], first["id"]);
    send(r#"{"kind":"noop"}"#, "").await.is_problem(422, "invalid_request");
    send(r#"{"kind":"noop"}"#, &"x".repeat(256))
        .await
        .is_problem(422, "invalid_request");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn racing_submissions_of_one_key_make_one_job(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let replica = api.replica(&pool).await;
    for round in 0..5 {
        let calls = (0..16).map(|n| {
            let api = if n % 2 == 0 { &api } else { &replica };
            let request = api
                .request(Method::POST, "/jobs")
                .header("idempotency-key", format!("race-{round}"));
            answer(request.json(&json!({"kind": "noop"})))
        });
        let answers = futures_util::future::join_all(calls).await;
        let mut ids: Vec<Value> = answers
            .into_iter()
            .map(|answer| answer.expect(202)["id"].clone())
            .collect();
        ids.dedup();
        assert_eq!(ids.len(), 1, "{ids:?}");
    }
    assert_eq!(api.get("/jobs").await.expect(200)["data"].as_array().unwrap().len(), 5);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_queued_job_says_what_it_waits_for(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop", "queue": "q"})).await;
    let reason = async || {
        api.get(&format!("/jobs/{job}")).await.expect(200)["waiting_for"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(reason().await.contains("no worker"), "{}", reason().await);
    api.post("/queues/q/pause", json!({})).await.expect(200);
    assert!(reason().await.contains("paused"), "{}", reason().await);
    api.post("/queues/q/resume", json!({})).await.expect(200);
    assert!(reason().await.contains("no worker"));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_stopping_server_finishes_and_ends_its_waits(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let path = format!("/jobs/{job}?wait=60s");
    let stop = async {
        eventually(SOON, "somebody waits", async || followed(&api).await.then_some(())).await;
        api.stop();
    };
    let (waited, ()) = tokio::join!(api.get(&path), stop);
    assert_eq!(waited.expect(200)["state"], "queued");
    assert!(api.stopped(Duration::from_secs(10)).await);
    assert!(reqwest::get(api.url("/jobs")).await.is_err(), "the port is closed");
}

/// It is in the middle of its body, and its client takes longer than the server waits.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_request_that_outlasts_a_stop_is_dropped(pool: PgPool) {
    let api = Api::start_with(pool, |config| config.http.drain = Duration::from_millis(200)).await;
    let mut connection = TcpStream::connect(api.address).await.unwrap();
    let head = format!(
        "POST /api/v1/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\
         expect: 100-continue\r\n\r\n",
        api.key
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut told = Vec::new();
    while !told.ends_with(b"\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut told).await.unwrap(), 0);
    }
    assert!(told.starts_with(b"HTTP/1.1 100 "), "it waits for the body");
    api.stop();
    assert!(api.stopped(SOON).await);
    let rest = tokio::time::timeout(SOON, connection.read_to_end(&mut told)).await;
    assert!(rest.is_ok(), "nobody is there any more");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_a_sandbox_connected_to_is_listed_in_pages_and_written_once(pool: PgPool) {
    let api = Api::start(pool).await;
    let job: JobId = api.submit(json!({"kind": "noop"})).await.parse().unwrap();
    let row = api.env.row(job).await;
    let decision = |seq| Connected {
        attempt: 1 + seq / 3,
        seq,
        at: api.env.clock.now(),
        method: Some("CONNECT".to_owned()),
        host: Some("a.example.org".to_owned()),
        port: Some(443),
        address: None,
        is_allowed: false,
        reason: Some("not_in_job".to_owned()),
        sent_bytes: 0,
        received_bytes: 0,
        duration: None,
    };
    let all: Vec<_> = (1..=5).map(decision).collect();
    api.env.store.insert_egress(&row, &all).await.unwrap();
    // It is completed once; what comes after that is too late.
    let ended = Connected {
        received_bytes: 7,
        duration: Some(Duration::from_millis(9)),
        ..decision(1)
    };
    let late = Connected {
        received_bytes: 8,
        ..ended.clone()
    };
    for one in [ended, late] {
        api.env.store.insert_egress(&row, &[one]).await.unwrap();
    }

    let first = api.get(&format!("/jobs/{job}/egress?limit=3")).await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = api
        .get(&format!("/jobs/{job}/egress?limit=3&cursor={cursor}"))
        .await
        .expect(200);
    let seen: Vec<_> = [&first, &second]
        .into_iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|item| (item["attempt"].as_u64().unwrap(), item["seq"].as_u64().unwrap()))
        .collect();
    assert_eq!(seen, [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]);
    assert!(second["next_cursor"].is_null());
    let item = &first["data"][0];
    assert_eq!(
        (item["received_bytes"].as_u64(), item["duration_ms"].as_u64()),
        (Some(7), Some(9))
    );
    assert_eq!(
        (item["allowed"].as_bool(), item["reason"].as_str()),
        (Some(false), Some("not_in_job"))
    );

    api.get(&format!("/jobs/{}/egress", JobId::new())).await.expect(404);
    api.get(&format!("/jobs/{job}/egress?limit=x")).await.expect(422);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_is_tried_again_is_said_by_code(pool: PgPool) {
    let api = Api::start(pool).await;
    let rules = json!(["timeout", "!sandbox_failed", "!worker_lost"]);
    let id = api.submit(json!({"kind": "noop", "retry_on": rules})).await;
    assert_eq!(api.get(&format!("/jobs/{id}")).await.expect(200)["retry_on"], rules);
    for bad in ["banana", "!banana", "!", "!!timeout"] {
        let refused = api
            .post("/jobs", json!({"kind": "noop", "retry_on": ["timeout", bad]}))
            .await;
        refused.is_problem(422, "invalid_request");
        assert_eq!(refused.places(), ["/retry_on/1"], "{}", refused.body);
    }
}
