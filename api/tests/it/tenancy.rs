//! Tenants and keys: who may call, and that nobody sees another's things.

use common::config::Secret;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, answer};

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn nobody_gets_in_without_a_key(pool: PgPool) {
    let api = Api::start(pool).await;
    let missing = answer(api.bare(Method::GET, "/api/v1/jobs")).await;
    missing.is_problem(401, "unauthenticated");
    assert_eq!(missing.headers["www-authenticate"], "Bearer");
    for value in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Basic aGg6eA==",
        "Bearer hh_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ] {
        answer(api.bare(Method::GET, "/api/v1/jobs").header("authorization", value))
            .await
            .is_problem(401, "unauthenticated");
    }
    let long = format!("Bearer {}", "x".repeat(10_000));
    answer(api.bare(Method::GET, "/api/v1/jobs").header("authorization", long))
        .await
        .is_problem(401, "unauthenticated");
    for open in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/"] {
        assert_eq!(answer(api.bare(Method::GET, open)).await.status, 200, "{open}");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn another_tenants_things_are_404(pool: PgPool) {
    let api = Api::start(pool).await;
    let (_, ann) = api.tenant(json!({"name": "ann"})).await;
    let (_, bob) = api.tenant(json!({"name": "bob"})).await;
    let job = ann.submit(json!({"kind": "noop"})).await;
    let agent = ann
        .post("/agents", json!({"name": "a", "models": ["scripted/echo"]}))
        .await
        .expect(201);
    let agent = agent["id"].as_str().unwrap().to_owned();
    let conversation = ann.post("/conversations", json!({"agent_id": agent})).await.expect(201);
    let conversation = conversation["id"].as_str().unwrap().to_owned();
    let reads = [
        format!("/jobs/{job}"),
        format!("/jobs/{job}/events"),
        format!("/jobs/{job}/attempts"),
        format!("/agents/{agent}"),
        format!("/agents/{agent}/versions"),
        format!("/agents/{agent}/versions/1"),
        format!("/conversations/{conversation}"),
        format!("/conversations/{conversation}/messages"),
    ];
    for path in &reads {
        ann.get(path).await.expect(200);
        bob.get(path).await.is_problem(404, "not_found");
        api.get(path).await.is_problem(404, "not_found");
    }
    let writes = [
        (format!("/jobs/{job}/cancel"), json!({})),
        (format!("/jobs/{job}/redrive"), json!({})),
        (format!("/jobs/{job}/stream-tokens"), json!({})),
        (format!("/agents/{agent}/runs"), json!({"input": "hi"})),
        (format!("/agents/{agent}/rollback"), json!({"version": 1})),
        (format!("/conversations/{conversation}/turns"), json!({"text": "hi"})),
        (format!("/conversations/{conversation}/cancel"), json!({})),
        ("/conversations".to_owned(), json!({"agent_id": agent})),
        (
            "/jobs".to_owned(),
            json!({"kind": "agent_run", "input": {"agent_id": agent, "input": "hi"}}),
        ),
    ];
    for (path, body) in writes {
        bob.post(&path, body).await.is_problem(404, "not_found");
    }
    for path in [format!("/agents/{agent}"), format!("/conversations/{conversation}")] {
        bob.patch(&path, json!({})).await.is_problem(404, "not_found");
        bob.delete(&path).await.is_problem(404, "not_found");
    }
    for list in ["/jobs", "/agents", "/conversations", "/jobs?q=noop"] {
        assert_eq!(bob.get(list).await.expect(200)["data"], json!([]), "{list}");
    }
    assert_eq!(
        bob.post("/jobs/cancel", json!({"kind": "noop"})).await.expect(200)["matched"],
        0
    );
    assert_eq!(ann.get(&format!("/jobs/{job}")).await.expect(200)["state"], "queued");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn one_tenants_idempotency_key_is_not_anothers(pool: PgPool) {
    let api = Api::start(pool).await;
    let (_, ann) = api.tenant(json!({"name": "ann"})).await;
    let (_, bob) = api.tenant(json!({"name": "bob"})).await;
    let send = async |api: &Api| {
        let request = api
            .request(Method::POST, "/jobs")
            .header("idempotency-key", "k")
            .json(&json!({"kind": "noop"}));
        answer(request).await.expect(202)["id"].clone()
    };
    assert_ne!(send(&ann).await, send(&bob).await);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_admin_may_act_for_a_tenant_and_a_member_may_not(pool: PgPool) {
    let api = Api::start(pool).await;
    let (ann_id, ann) = api.tenant(json!({"name": "ann"})).await;
    let (bob_id, bob) = api.tenant(json!({"name": "bob"})).await;
    let job = ann.submit(json!({"kind": "noop"})).await;
    let as_tenant = async |api: &Api, tenant: &str| {
        answer(
            api.request(Method::GET, &format!("/jobs/{job}"))
                .header("x-tenant-id", tenant),
        )
        .await
    };
    as_tenant(&api, &ann_id).await.expect(200);
    as_tenant(&api, &bob_id).await.is_problem(404, "not_found");
    as_tenant(&ann, &ann_id).await.expect(200);
    as_tenant(&bob, &ann_id).await.is_problem(403, "forbidden");
    as_tenant(&api, "01a1fc32-6400-72c3-8633-dc013012e596")
        .await
        .is_problem(404, "not_found");
    let garbage = as_tenant(&api, "garbage").await;
    garbage.is_problem(422, "invalid_request");
    assert_eq!(garbage.places(), ["x-tenant-id"]);
    for (method, path) in [
        (Method::GET, "/tenants"),
        (Method::POST, "/tenants"),
        (Method::POST, "/keys"),
        (Method::GET, "/workers"),
        (Method::GET, "/duties"),
        (Method::POST, "/queues/q/pause"),
        (Method::POST, "/workers/01a1fc32-6400-72c3-8633-dc013012e596/drain"),
    ] {
        answer(bob.request(method, path).json(&json!({})))
            .await
            .is_problem(403, "forbidden");
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_key_is_shown_once_and_can_be_revoked(pool: PgPool) {
    let api = Api::start(pool).await;
    let (tenant, _) = api.tenant(json!({"name": "ann"})).await;
    let made = api
        .post(
            "/keys",
            json!({"tenant_id": tenant, "role": "member", "name": "laptop"}),
        )
        .await
        .expect(201);
    let secret = made["key"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("hh_") && secret.starts_with(made["prefix"].as_str().unwrap()));
    let ann = api.with_key(&secret);
    ann.get("/jobs").await.expect(200);
    let listed = api.get(&format!("/keys?tenant_id={tenant}")).await.expect(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(&secret));
    assert_eq!(
        ann.get("/keys").await.expect(200)["data"].as_array().unwrap().len(),
        2,
        "its own tenant's"
    );
    let path = format!("/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(api.delete(&path).await.status, 204);
    ann.get("/jobs").await.is_problem(401, "unauthenticated");
    api.delete("/keys/01a1fc32-6400-72c3-8633-dc013012e596")
        .await
        .is_problem(404, "not_found");
    let foreign = api
        .post("/keys", json!({"tenant_id": "01a1fc32-6400-72c3-8633-dc013012e596"}))
        .await;
    foreign.is_problem(422, "invalid_request");
    assert_eq!(foreign.places(), ["/tenant_id"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tenant_has_its_limits(pool: PgPool) {
    let api = Api::start(pool).await;
    let (id, ann) = api.tenant(json!({"name": "ann", "priority_max": 4, "weight": 2})).await;
    let refused = ann.post("/jobs", json!({"kind": "noop", "priority": 5})).await;
    refused.is_problem(422, "invalid_request");
    assert_eq!(refused.places(), ["/priority"]);
    assert_eq!(
        ann.post("/jobs", json!({"kind": "noop"})).await.expect(202)["priority"],
        4
    );
    let changed = api
        .patch(&format!("/tenants/{id}"), json!({"priority_max": 9, "max_running": 3}))
        .await
        .expect(200);
    assert_eq!(
        (&changed["priority_max"], &changed["max_running"], &changed["weight"]),
        (&json!(9), &json!(3), &json!(2))
    );
    ann.post("/jobs", json!({"kind": "noop", "priority": 9}))
        .await
        .expect(202);
    let freed = api
        .patch(&format!("/tenants/{id}"), json!({"max_running": null}))
        .await
        .expect(200);
    assert_eq!(
        (&freed["max_running"], &freed["priority_max"]),
        (&Value::Null, &json!(9))
    );
    assert_eq!(api.get(&format!("/tenants/{id}")).await.expect(200), freed);

    api.post("/tenants", json!({"name": "ann"}))
        .await
        .is_problem(409, "conflict");
    let many = api
        .post(
            "/tenants",
            json!({"name": "", "weight": 0, "priority_max": 10, "rate": 0}),
        )
        .await;
    many.is_problem(422, "invalid_request");
    assert_eq!(many.places(), ["/name", "/weight", "/priority_max", "/rate"]);
    api.post("/tenants", json!({"name": "\u{0}"}))
        .await
        .is_problem(422, "invalid_request");
    api.post("/tenants", json!({})).await.is_problem(422, "invalid_request");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tenant_that_calls_too_often_is_told_when_to_come_back(pool: PgPool) {
    let api = Api::start(pool).await;
    let (_, slow) = api.tenant(json!({"name": "slow", "rate": 2})).await;
    let answers = futures_util::future::join_all((0..10).map(|_| slow.get("/jobs"))).await;
    let refused = answers
        .iter()
        .find(|answer| answer.status == 429)
        .expect("ten at once are too many");
    refused.is_problem(429, "rate_limited");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.headers["ratelimit-policy"], "\"tenant\";q=2;w=1");
    assert!(
        answers
            .iter()
            .any(|answer| answer.status == 200 && answer.headers.contains_key("ratelimit"))
    );
    api.get("/jobs").await.expect(200);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_short_admin_key_is_refused_at_the_start(pool: PgPool) {
    let env = common::testing::TestEnv::new(pool.clone()).await;
    let mut config = crate::fixture::config(&env, &pool);
    config.auth.admin_key = Secret::from("short".to_owned());
    let lifecycle = common::lifecycle::Lifecycle::new();
    let error = api::Server::bind(config, env.clock.clock(), &lifecycle)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("auth.admin_key"), "{error}");
}
