//! Postgres or Redis is away: clear answers, nothing lost, and everything goes on by itself afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use common::config::Secret;
use common::lifecycle::Lifecycle;
use common::testing::eventually;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, PgPool};

use crate::fixture::{ADMIN, Api, Proxy, SOON, answer, authority};

/// A server that reaches Postgres through a proxy.
async fn behind_proxy(pool: &PgPool) -> (Api, Proxy) {
    let url = pool.connect_options().to_url_lossy().to_string();
    let proxy = Proxy::to(authority(&url)).await;
    let proxied = url.replace(&authority(&url), &proxy.address.to_string());
    let api = Api::start_with(pool.clone(), |config| {
        config.database.url = Secret::from(proxied);
        config.database.acquire_timeout = Duration::from_secs(1);
        config.auth.cache = Duration::from_hours(1);
    })
    .await;
    (api, proxy)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn without_postgres_everything_is_a_503_until_it_is_back(pool: PgPool) {
    let (api, proxy) = behind_proxy(&pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let stranger = api.with_key("hh_a_key_that_nobody_has");
    stranger.get("/jobs").await.is_problem(401, "unauthenticated");
    proxy.down();
    let calls = [
        (Method::POST, "/jobs".to_owned(), json!({"kind": "noop"})),
        (
            Method::POST,
            "/jobs/batch".to_owned(),
            json!({"jobs": [{"kind": "noop"}, {"kind": "noop"}]}),
        ),
        (Method::GET, "/jobs".to_owned(), Value::Null),
        (Method::GET, format!("/jobs/{job}"), Value::Null),
        (Method::GET, format!("/jobs/{job}/events"), Value::Null),
        (Method::POST, format!("/jobs/{job}/cancel"), json!({})),
        (
            Method::POST,
            "/agents".to_owned(),
            json!({"name": "a", "models": ["scripted/echo"]}),
        ),
        (Method::GET, "/queues".to_owned(), Value::Null),
    ];
    for (method, path, body) in calls {
        let answer = answer(api.request(method, &path).json(&body)).await;
        answer.is_problem(503, "unavailable");
        assert!(answer.headers.contains_key("retry-after"), "{path}");
    }
    // That a key is nobody's is remembered for a while, as what is known of others.
    stranger.get("/jobs").await.is_problem(401, "unauthenticated");
    // A key that nobody has seen yet cannot be looked up: that is no 401.
    api.with_key("hh_another_key_of_nobody")
        .get("/jobs")
        .await
        .is_problem(503, "unavailable");
    let ready = answer(api.bare(Method::GET, "/readyz")).await;
    assert_eq!(
        (ready.status.as_u16(), &ready.body["postgres"]),
        (503, &json!("unavailable"))
    );
    answer(api.bare(Method::GET, "/healthz")).await.expect(200);

    proxy.up();
    eventually(SOON, "the API is ready again", async || {
        (answer(api.bare(Method::GET, "/readyz")).await.status == 200).then_some(())
    })
    .await;
    api.submit(json!({"kind": "noop"})).await;
    assert_eq!(
        api.get(&format!("/jobs/{job}")).await.expect(200)["state"],
        "queued",
        "a refused cancel cancels nothing"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_stream_outlives_postgres(pool: PgPool) {
    let (api, proxy) = behind_proxy(&pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let request = api
        .request(Method::GET, &format!("/jobs/{job}/events"))
        .header("accept", "text/event-stream");
    let mut response = request.send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"retry: 2000\nid: 1\n"));
    proxy.down();
    // A hint makes the follower read, which fails.
    api.env
        .queue
        .cancel(
            api.env.row(job.parse().unwrap()).await.tenant_id,
            job.parse().unwrap(),
            1,
            false,
        )
        .await
        .unwrap();
    api.get("/jobs").await.is_problem(503, "unavailable");
    proxy.up();
    eventually(SOON, "the job is cancelled", async || {
        (api.post(&format!("/jobs/{job}/cancel"), json!({})).await.status == 202).then_some(())
    })
    .await;
    let mut rest = Vec::new();
    while let Some(chunk) = tokio::time::timeout(SOON, response.chunk())
        .await
        .expect("an end")
        .unwrap()
    {
        rest.extend_from_slice(&chunk);
    }
    assert!(String::from_utf8(rest).unwrap().contains("event: cancelled\n"));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn without_redis_jobs_are_accepted_and_found_later(pool: PgPool) {
    let url = common::testing::redis_section().url;
    let proxy = Proxy::to(authority(url.expose())).await;
    let proxied = url
        .expose()
        .replace(&authority(url.expose()), &proxy.address.to_string());
    let api = Api::start_with(pool, |config| {
        config.redis.url = Secret::from(proxied);
        config.redis.response_timeout = Duration::from_millis(500);
    })
    .await;
    proxy.down();
    let job = api.submit(json!({"kind": "noop"})).await;
    let batch = api
        .post("/jobs/batch", json!({"jobs": [{"kind": "noop"}, {"kind": "noop"}]}))
        .await
        .expect(202);
    assert!(
        batch["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["job"]["state"] == "queued")
    );
    assert_eq!(api.get(&format!("/jobs/{job}")).await.expect(200)["state"], "queued");
    assert_eq!(
        api.get(&format!("/jobs/{job}/events")).await.expect(200)["data"][0]["type"],
        "queued"
    );
    api.post("/queues/q/pause", json!({})).await.expect(200);
    let cancelled = api.submit(json!({"kind": "noop"})).await;
    assert_eq!(
        api.post(&format!("/jobs/{cancelled}/cancel"), json!({}))
            .await
            .expect(202)["state"],
        "cancelled"
    );
    assert_eq!(
        api.get(&format!("/jobs/{cancelled}?wait=10s")).await.expect(200)["state"],
        "cancelled"
    );
    crate::operating::register(&api, &[]).await;
    let reason = api.get(&format!("/jobs/{job}")).await.expect(200)["waiting_for"].clone();
    assert!(
        reason.as_str().unwrap().starts_with("Redis, which does not answer"),
        "{reason}"
    );
    let ready = answer(api.bare(Method::GET, "/readyz")).await.expect(200);
    assert_eq!(
        (&ready["status"], &ready["redis"]),
        (&json!("degraded"), &json!("unavailable"))
    );

    proxy.up();
    eventually(SOON, "redis answers again", async || {
        (answer(api.bare(Method::GET, "/readyz")).await.body["redis"] == "ok").then_some(())
    })
    .await;
    assert_eq!(api.env.redispatch().await, 3);
    assert_eq!(api.env.worker().claim(10).await.len(), 3);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_postgres_that_is_silent_is_not_waited_for_longer_than_for_a_connection(pool: PgPool) {
    let (api, proxy) = behind_proxy(&pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    proxy.silence();
    let calls = [
        // The first of a sort may find the connection that it had before.
        (Method::POST, "/jobs".to_owned(), json!({"kind": "noop"})),
        (Method::POST, "/jobs".to_owned(), json!({"kind": "noop"})),
        (Method::GET, format!("/jobs/{job}"), Value::Null),
        (Method::GET, format!("/jobs/{job}"), Value::Null),
    ];
    // A statement would be waited for fifteen seconds.
    let limit = Duration::from_secs(8);
    for (method, path, body) in calls {
        let answered = tokio::time::timeout(limit, answer(api.request(method, &path).json(&body))).await;
        answered.unwrap().is_problem(503, "unavailable");
    }
    let stranger = api.with_key("hh_a_key_that_nobody_has");
    let answered = tokio::time::timeout(limit, stranger.get("/jobs")).await;
    answered.unwrap().is_problem(503, "unavailable");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_server_starts_without_its_services_and_waits_for_them(pool: PgPool) {
    let env = common::testing::TestEnv::new(pool.clone()).await;
    let url = pool.connect_options().to_url_lossy().to_string();
    let proxy = Proxy::to(authority(&url)).await;
    proxy.down();
    let mut config = crate::fixture::config(&env, &pool);
    config.database.url = Secret::from(url.replace(&authority(&url), &proxy.address.to_string()));
    config.database.acquire_timeout = Duration::from_millis(500);
    config.redis.url = Secret::from("redis://127.0.0.1:1/".to_owned());
    config.http.migrate = true;
    let lifecycle = Lifecycle::new();
    let server = api::Server::bind(config, env.clock.clock(), &lifecycle).await.unwrap();
    let address = server.address();
    let stop = lifecycle.clone();
    lifecycle.spawn("api", async move { server.serve(&stop).await });
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let jobs = async || answer(client.get(format!("http://{address}/api/v1/jobs")).bearer_auth(ADMIN)).await;
    jobs().await.is_problem(503, "unavailable");
    proxy.up();
    eventually(SOON, "the key is known", async || {
        (jobs().await.status == 200).then_some(())
    })
    .await;
    lifecycle.stop();
    assert!(lifecycle.drained(Duration::from_secs(10), Duration::from_secs(1)).await);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_api_without_its_tables_is_not_ready(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let ready = async || answer(api.bare(Method::GET, "/readyz")).await.status.as_u16();
    assert_eq!(ready().await, 200);
    let newest = "(select max(version) from _sqlx_migrations)";
    let pretend = async |success: bool| {
        let sql = format!("update _sqlx_migrations set success = {success} where version = {newest}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    };
    pretend(false).await;
    assert_eq!(ready().await, 503);
    pretend(true).await;
    assert_eq!(ready().await, 200);
    sqlx::query("drop table _sqlx_migrations").execute(&pool).await.unwrap();
    assert_eq!(ready().await, 503);
}

/// A server of its own beside what a test already has, which migrates.
async fn bound(pool: &PgPool, lifecycle: &Lifecycle) -> SocketAddr {
    let env = common::testing::TestEnv::new(pool.clone()).await;
    let mut config = crate::fixture::config(&env, pool);
    config.http.migrate = true;
    let server = api::Server::bind(config, env.clock.clock(), lifecycle).await.unwrap();
    let (address, stop) = (server.address(), lifecycle.clone());
    lifecycle.spawn("api", async move { server.serve(&stop).await });
    address
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_server_is_ready_once_its_key_is_known_and_refuses_nobody_before(pool: PgPool) {
    let mut holder = pool.begin().await.unwrap();
    let lock = "lock table api_keys in exclusive mode";
    sqlx::query(lock).execute(&mut *holder).await.unwrap();
    let lifecycle = Lifecycle::new();
    let address = bound(&pool, &lifecycle).await;
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let get =
        async |path: &str, key: &str| answer(client.get(format!("http://{address}{path}")).bearer_auth(key)).await;
    assert_eq!(get("/readyz", ADMIN).await.status, 503);
    get("/api/v1/jobs", ADMIN).await.is_problem(503, "unavailable");
    get("/api/v1/jobs", "hh_nobodys").await.is_problem(503, "unavailable");
    holder.rollback().await.unwrap();
    eventually(SOON, "it is ready", async || {
        (get("/readyz", ADMIN).await.status == 200).then_some(())
    })
    .await;
    get("/api/v1/jobs", ADMIN).await.expect(200);
    get("/api/v1/jobs", "hh_nobodys")
        .await
        .is_problem(401, "unauthenticated");
    lifecycle.stop();
    assert!(lifecycle.drained(Duration::from_secs(10), Duration::from_secs(1)).await);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_server_that_is_older_than_its_database_serves(pool: PgPool) {
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                 values (99999999999999, 'of a newer version', true, '', 0)";
    sqlx::query(newer).execute(&pool).await.unwrap();
    let lifecycle = Lifecycle::new();
    let address = bound(&pool, &lifecycle).await;
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    eventually(SOON, "it is ready", async || {
        let ready = answer(client.get(format!("http://{address}/readyz"))).await;
        (ready.status == 200).then_some(())
    })
    .await;
    let jobs = client.get(format!("http://{address}/api/v1/jobs")).bearer_auth(ADMIN);
    answer(jobs).await.expect(200);
    lifecycle.stop();
    assert!(lifecycle.drained(Duration::from_secs(10), Duration::from_secs(1)).await);
}
