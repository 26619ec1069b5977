//! Event logs over HTTP: framing, resuming, the end, pages, tokens, and a tenant's changes.

use std::time::Duration;

use common::config::Secret;
use common::job::decision::Decision;
use common::queue::Appended;
use common::store::claim::Claimed;
use common::store::events::Chunk;
use common::testing::{TestWorker, eventually, failure};
use futures_util::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, Proxy, SOON, answer, authority};

/// The bytes of a stream as they come.
struct Reader {
    response: Response,
    text: String,
}

impl Reader {
    async fn open(api: &Api, job: &str, last: Option<u64>) -> Self {
        let mut request = api
            .request(Method::GET, &format!("/jobs/{job}/events"))
            .header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Self {
            response,
            text: String::new(),
        }
    }

    /// The changes of all jobs of the caller.
    async fn feed(api: &Api) -> Self {
        let mut response = api.request(Method::GET, "/events").send().await.unwrap();
        let first = response.chunk().await.unwrap().unwrap();
        Self {
            response,
            text: String::from_utf8(first.to_vec()).unwrap(),
        }
    }

    /// Reads on until the text has this in it.
    async fn until(&mut self, wanted: &str) -> &str {
        while !self.text.contains(wanted) {
            let chunk = tokio::time::timeout(SOON, self.response.chunk()).await;
            let chunk = chunk
                .unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", self.text))
                .unwrap();
            self.text
                .push_str(std::str::from_utf8(&chunk.expect("the stream goes on")).unwrap());
        }
        &self.text
    }

    /// Reads on to the end.
    async fn rest(mut self) -> String {
        while let Some(chunk) = tokio::time::timeout(SOON, self.response.chunk())
            .await
            .expect("an end")
            .unwrap()
        {
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        self.text
    }
}

/// The numbers of the events in a stream's text.
fn numbers(text: &str) -> Vec<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .map(|id| id.parse().unwrap())
        .collect()
}

async fn claimed(api: &Api) -> (TestWorker, Claimed) {
    let worker = api.env.worker();
    let claimed = eventually(SOON, "the job is dispatched", async || worker.claim(1).await.pop()).await;
    (worker, claimed)
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_stream_is_these_bytes(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let mut reader = Reader::open(&api, &job, None).await;
    let headers = reader.response.headers().clone();
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-cache, no-transform");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert!(!headers.contains_key("content-encoding"));
    reader.until("\n\n").await;

    let (worker, claimed) = claimed(&api).await;
    let said = worker.said(&claimed, 1);
    assert_eq!(worker.append(&claimed, said[0].seq - 1, &said).await, Appended::Ok);
    reader.until("line 1").await;
    assert!(worker.settle_after(&claimed, Decision::Succeed, &said).await);
    let row = api.env.row(claimed.job.id).await;
    let at = |time: Option<chrono::DateTime<chrono::Utc>>| json!(time.unwrap()).as_str().unwrap().to_owned();
    let expected = format!(
        "retry: 2000\n\
         id: 1\nevent: queued\ndata: {{\"seq\":1,\"at\":\"{created}\",\"attempt\":0,\"type\":\"queued\"}}\n\n\
         id: 2\nevent: started\ndata: {{\"seq\":2,\"at\":\"{started}\",\"attempt\":1,\"type\":\"started\",\"worker\":\"{worker}\"}}\n\n\
         id: 3\nevent: stdout\ndata: {{\"seq\":3,\"at\":\"{said}\",\"attempt\":1,\"type\":\"stdout\",\"text\":\"line 1 of attempt 1\\n\"}}\n\n\
         id: 4\nevent: succeeded\ndata: {{\"seq\":4,\"at\":\"{ended}\",\"attempt\":1,\"type\":\"succeeded\",\"result\":null}}\n\n",
        created = at(Some(row.created_at)),
        started = at(row.started_at),
        said = at(Some(said[1].at)),
        ended = at(row.finished_at),
        worker = worker.id,
    );
    assert_eq!(reader.rest().await, expected);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_quiet_stream_beats_and_ends_with_a_cancel(pool: PgPool) {
    let api = Api::start_with(pool, |config| config.http.heartbeat = Duration::from_millis(100)).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let mut reader = Reader::open(&api, &job, None).await;
    let text = reader.until(": hb\n: hb\n").await;
    assert!(
        text.contains("\n\n: hb\n: hb\n") && !text.contains(": hb\n\n"),
        "{text:?}"
    );
    api.post(&format!("/jobs/{job}/cancel"), json!({})).await.expect(202);
    assert!(reader.rest().await.contains("event: cancelled\n"));
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn every_reader_sees_the_whole_log_once_from_any_replica(pool: PgPool) {
    let api = Api::start(pool.clone()).await;
    let replica = api.replica(&pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let (worker, claimed) = claimed(&api).await;
    let said = worker.said(&claimed, 60);

    let follow = async |api: &Api, drop_every: usize| {
        let (mut seen, mut last): (Vec<u64>, Option<u64>) = (Vec::new(), None);
        loop {
            let mut reader = Reader::open(api, &job, last).await;
            let mut is_over = true;
            while let Some(chunk) = reader.response.chunk().await.unwrap() {
                reader.text.push_str(std::str::from_utf8(&chunk).unwrap());
                // Only whole events count: a client throws half of one away.
                if reader.text.ends_with("\n\n") && numbers(&reader.text).len() >= drop_every {
                    is_over = reader.text.contains("event: succeeded");
                    break;
                }
            }
            seen.extend(numbers(&reader.text));
            last = seen.last().copied();
            if is_over {
                return seen;
            }
        }
    };
    let work = async {
        for piece in said.chunks(7) {
            let written = piece[0].seq - 1;
            assert_eq!(worker.append(&claimed, written, piece).await, Appended::Ok);
            let chunk = Chunk::pack(claimed.job.id, piece).unwrap();
            api.env
                .store
                .append_chunk(&chunk, claimed.job.attempt, worker.id)
                .await
                .unwrap();
        }
        let last = said.last().cloned().unwrap();
        let mut settlement = worker.settlement(&claimed, Decision::Succeed, &[last]);
        settlement.chunk = None;
        assert!(worker.commit(&settlement).await);
        worker.ack(&claimed, &settlement).await;
    };
    let (a, b, c, ()) = tokio::join!(
        follow(&api, 3),
        follow(&replica, 10),
        follow(&replica, usize::MAX),
        work
    );
    let expected: Vec<u64> = (1..=63).collect();
    assert_eq!(a, expected);
    assert_eq!(b, expected);
    assert_eq!(c, expected);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_reconnect_at_or_past_the_end_is_a_204(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let (worker, claimed) = claimed(&api).await;
    assert!(worker.settle(&claimed, Decision::Fail(failure())).await);
    let whole = Reader::open(&api, &job, None).await.rest().await;
    let end = *numbers(&whole).last().unwrap();
    assert!(
        whole.ends_with("\n\n") && whole.contains("event: failed\n") && whole.contains("\"code\":\"nonzero_exit\"")
    );
    for last in [end, end + 1, u64::MAX] {
        let request = api
            .request(Method::GET, &format!("/jobs/{job}/events"))
            .header("accept", "text/event-stream");
        let response = request.header("last-event-id", last.to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
    }
    let resumed = Reader::open(&api, &job, Some(end - 1)).await.rest().await;
    assert_eq!(numbers(&resumed), [end]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_page_goes_on_where_the_last_one_ended(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let (worker, claimed) = claimed(&api).await;
    let said = worker.said(&claimed, 20);
    worker.append(&claimed, said[0].seq - 1, &said).await;
    assert!(worker.settle_after(&claimed, Decision::Succeed, &said).await);
    let (mut seen, mut after) = (Vec::new(), String::from("0"));
    loop {
        let page = api
            .get(&format!("/jobs/{job}/events?limit=7&after={after}"))
            .await
            .expect(200);
        let data = page["data"].as_array().unwrap().clone();
        assert!(data.len() <= 7);
        seen.extend(data.iter().map(|event| event["seq"].as_u64().unwrap()));
        let Some(next) = page["next_cursor"].as_str() else {
            assert_eq!(
                (page["ended"].as_bool(), &data.last().unwrap()["type"]),
                (Some(true), &json!("succeeded"))
            );
            break;
        };
        next.clone_into(&mut after);
    }
    assert_eq!(seen, (1..=23).collect::<Vec<u64>>());
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_client_that_goes_away_cancels_nothing(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let mut reader = Reader::open(&api, &job, None).await;
    reader.until("event: queued").await;
    drop(reader);
    let (worker, claimed) = claimed(&api).await;
    assert!(worker.succeed(&claimed).await);
    assert_eq!(
        api.get(&format!("/jobs/{job}?wait=10s")).await.expect(200)["state"],
        "succeeded"
    );
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_stream_token_opens_one_stream_and_nothing_else(pool: PgPool) {
    let api = Api::start(pool).await;
    let (_, member) = api.tenant(json!({"name": "t"})).await;
    let (job, other) = (
        member.submit(json!({"kind": "noop"})).await,
        member.submit(json!({"kind": "noop"})).await,
    );
    let made = member
        .post(&format!("/jobs/{job}/stream-tokens"), json!({"ttl": "10m"}))
        .await
        .expect(201);
    let (token, url) = (made["token"].as_str().unwrap(), made["url"].as_str().unwrap());
    let open = async |path: &str| {
        let request = api
            .bare(Method::GET, path)
            .header("accept", "text/event-stream")
            .send()
            .await
            .unwrap();
        request.status().as_u16()
    };
    assert_eq!(open(url).await, 200);
    assert_eq!(open(&format!("/api/v1/jobs/{other}/events?token={token}")).await, 403);
    assert_eq!(open(&format!("/api/v1/jobs/{job}?token={token}")).await, 401);
    assert_eq!(open(&format!("/api/v1/events?token={token}")).await, 401);
    assert_eq!(open(&format!("/api/v1/jobs/{job}/events?token={token}x")).await, 401);
    assert_eq!(open(&format!("/api/v1/jobs/{job}/events?token=hhs_")).await, 401);
    api.env.advance(Duration::from_secs(601));
    assert_eq!(open(url).await, 401, "it is over");
    for ttl in ["61m", "0s", "x"] {
        let refused = member
            .post(&format!("/jobs/{job}/stream-tokens"), json!({"ttl": ttl}))
            .await;
        refused.is_problem(422, "invalid_request");
        assert_eq!(refused.places(), ["/ttl"]);
    }
    // An admin who acts for the tenant gets a token for the tenant's job; the foreign job is nobody else's.
    api.post(&format!("/jobs/{job}/stream-tokens"), json!({}))
        .await
        .is_problem(404, "not_found");
    let tenant = member.env.row(job.parse().unwrap()).await.tenant_id.to_string();
    let acting = api
        .request(Method::POST, &format!("/jobs/{job}/stream-tokens"))
        .header("x-tenant-id", tenant);
    let made = answer(acting).await.expect(201);
    assert_eq!(open(made["url"].as_str().unwrap()).await, 200);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_tenants_feed_shows_its_changes_and_no_others(pool: PgPool) {
    let api = Api::start(pool).await;
    let (_, member) = api.tenant(json!({"name": "t"})).await;
    let mut feed = member
        .request(Method::GET, "/events")
        .send()
        .await
        .unwrap()
        .bytes_stream();
    let mut text = String::from_utf8(feed.next().await.unwrap().unwrap().to_vec()).unwrap();
    let foreign = api.submit(json!({"kind": "noop"})).await;
    let own = member.submit(json!({"kind": "noop"})).await;
    let worker = api.env.worker();
    for _ in 0..2 {
        let claimed = eventually(SOON, "the job is dispatched", async || worker.claim(1).await.pop()).await;
        assert!(worker.succeed(&claimed).await);
    }
    while !text.contains("\"state\":\"succeeded\"") {
        let chunk = tokio::time::timeout(SOON, feed.next())
            .await
            .expect("a change")
            .unwrap()
            .unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(text.contains(&own) && !text.contains(&foreign), "{text}");
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let data = data.map(|json| serde_json::from_str::<Value>(json).unwrap());
    // Where the server listens to Redis only after this reader has come, it says that it missed something.
    let mut jobs = data.filter(|data| *data != json!({}));
    assert!(jobs.all(|job| job["id"] == own.as_str()), "{text}");
    assert!(text.starts_with("retry: 2000\nevent: "), "{text}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_feed_that_heard_nothing_for_a_while_says_so(pool: PgPool) {
    let url = common::testing::redis_section().url;
    let proxy = Proxy::to(authority(url.expose())).await;
    let proxied = url
        .expose()
        .replace(&authority(url.expose()), &proxy.address.to_string());
    let api = Api::start_with(pool, |config| config.redis.url = Secret::from(proxied)).await;
    let mut reader = Reader::feed(&api).await;
    proxy.down();
    proxy.up();
    reader.until("event: resume_gap\n").await;
    let job = api.submit(json!({"kind": "noop"})).await;
    reader.until(&job).await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_stopping_server_ends_its_streams(pool: PgPool) {
    let api = Api::start(pool).await;
    let job = api.submit(json!({"kind": "noop"})).await;
    let mut reader = Reader::open(&api, &job, None).await;
    reader.until("event: queued").await;
    api.stop();
    assert!(!reader.rest().await.contains("cancelled"));
    assert!(api.stopped(Duration::from_secs(10)).await);
}
