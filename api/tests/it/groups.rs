//! Groups as they are submitted and shown, and acting on many jobs.

use std::cell::Cell;
use std::time::Duration;

use common::job::decision::Decision;
use common::testing::{eventually, failure};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Api, SOON};

fn group(jobs: Value) -> Value {
    let mut group = json!({"kind": "group", "input": {}});
    group["input"]["jobs"] = jobs;
    group
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_group_is_checked_with_all_its_jobs_and_shows_no_secret(pool: PgPool) {
    let api = Api::start(pool).await;
    let refused = async |jobs: Value, pointer: &str| {
        let problem = api.post("/jobs", group(jobs)).await;
        problem.is_problem(422, "invalid_request");
        assert_eq!(problem.body["errors"][0]["pointer"], pointer, "{}", problem.body);
    };
    refused(json!([]), "/input/jobs").await;
    refused(
        json!([{"kind": "noop"}, {"kind": "noop", "priority": 10}]),
        "/input/jobs/1/priority",
    )
    .await;
    refused(json!([{"kind": "exec", "input": {}}]), "/input/jobs/0/input/language").await;
    refused(json!([{"kind": "noop", "delay": "1m"}]), "/input/jobs/0/run_at").await;
    refused(
        json!([{"kind": "group", "input": {"jobs": [{"kind": "noop"}]}}]),
        "/input/jobs/0/kind",
    )
    .await;
    refused(Value::Array(vec![json!({"kind": "noop"}); 1_001]), "/input/jobs").await;
    let mut unknown = group(json!([{"kind": "noop"}]));
    unknown["input"]["on_failure"] = json!("explode");
    api.post("/jobs", unknown).await.is_problem(422, "invalid_request");
    let mut long = group(json!([{"kind": "noop"}]));
    long["timeout"] = json!("8days");
    api.post("/jobs", long).await.is_problem(422, "invalid_request");

    let secret = json!({"kind": "exec", "input": {"command": ["true"], "env": {"TOKEN": "s3cret"}}});
    let id = api.submit(group(json!([secret.clone()]))).await;
    let shown = api.get(&format!("/jobs/{id}")).await.expect(200);
    assert_eq!(shown["input"]["jobs"][0]["kind"], "exec");
    assert_eq!(
        (&shown["timeout"], &shown["input"]["on_failure"]),
        (&json!("1day"), &json!("continue"))
    );
    assert!(!shown.to_string().contains("s3cret"), "{shown:#}");
    let schedule = json!({"name": "g", "cron": "0 0 1 1 *", "timezone": "UTC", "job": group(json!([secret]))});
    let schedule = api.post("/schedules", schedule).await.expect(201);
    let schedule = api
        .get(&format!("/schedules/{}", schedule["id"].as_str().unwrap()))
        .await
        .expect(200);
    assert_eq!(schedule["job"]["input"]["jobs"][0]["kind"], "exec");
    assert!(!schedule.to_string().contains("s3cret"), "{schedule:#}");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_fails_again_is_not_repeated_again_by_the_same_filter(pool: PgPool) {
    let api = Api::start_with(pool, |config| config.submit.many_budget = Duration::ZERO).await;
    let worker = api.env.worker();
    for _ in 0..3 {
        api.submit(json!({"kind": "noop", "queue": "x"})).await;
    }
    let fail = async |count: usize| {
        let failed = Cell::new(0);
        eventually(SOON, "they run", async || {
            for claimed in worker.claim(5).await {
                assert!(worker.settle(&claimed, Decision::Fail(failure())).await);
                failed.set(failed.get() + 1);
            }
            (failed.get() == count).then_some(())
        })
        .await;
    };
    fail(3).await;
    let filter = json!({"queue": "x"});
    let counted = api
        .post("/jobs/redrive", json!({"queue": "x", "dry_run": true}))
        .await
        .expect(200);
    assert_eq!((&counted["matched"], &counted["more"]), (&json!(3), &json!(false)));
    let first = api.post("/jobs/redrive", filter.clone()).await.expect(200);
    assert_eq!((&first["matched"], &first["more"]), (&json!(3), &json!(false)));
    fail(3).await;
    let mut same = filter.clone();
    same["created_before"] = first["created_before"].clone();
    assert_eq!(
        api.post("/jobs/redrive", same).await.expect(200)["matched"],
        0,
        "the new ones are not meant"
    );
    assert_eq!(
        api.post("/jobs/redrive", filter).await.expect(200)["matched"],
        3,
        "now they are"
    );
}

/// With no time at all, a call does one batch and says that there is more.
#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_call_that_has_no_time_left_says_that_there_is_more(pool: PgPool) {
    let api = Api::start_with(pool, |config| config.submit.many_budget = Duration::ZERO).await;
    api.post("/queues/held/pause", json!({})).await.expect(200);
    for _ in 0..2 {
        let jobs = json!({"jobs": vec![json!({"kind": "noop", "queue": "held"}); 700]});
        api.post("/jobs/batch", jobs).await.expect(202);
    }
    let mut body = json!({"queue": "held"});
    let (mut calls, mut matched) = (0, 0);
    loop {
        let answer = api.post("/jobs/cancel", body.clone()).await.expect(200);
        calls += 1;
        matched += answer["matched"].as_u64().unwrap();
        body["created_before"] = answer["created_before"].clone();
        if answer["more"] == false {
            break;
        }
    }
    assert_eq!(matched, 1_400);
    assert!(calls >= 2, "{calls}");
    assert_eq!(
        api.get("/jobs?queue=held&state=queued").await.expect(200)["data"],
        json!([])
    );
    assert_eq!(
        api.post("/jobs/cancel", json!({"queue": "held", "dry_run": true}))
            .await
            .expect(200)["matched"],
        0
    );
}
