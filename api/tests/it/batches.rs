//! Batches: one bad row never fails its neighbours.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::{Answer, Api, answer};

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn each_job_of_a_batch_is_accepted_or_refused_alone(pool: PgPool) {
    let api = Api::start(pool).await;
    let jobs = json!([
        {"kind": "noop"},
        {"kind": "noop", "priority": 10},
        {"kind": "dance"},
        7,
        {"kind": "exec", "input": {"language": "python", "code": "print(1)"}},
        {"kind": "noop", "metadata": {"a": "\u{0}"}},
        {"kind": "noop", "delay": "1h"},
    ]);
    let answer = api.post("/jobs/batch", json!({"jobs": jobs})).await.expect(202);
    let data = answer["data"].as_array().unwrap();
    let shown: Vec<(u64, Option<&str>, Option<&str>)> = data
        .iter()
        .map(|item| {
            let pointer = item["error"]["errors"][0]["pointer"].as_str();
            (item["index"].as_u64().unwrap(), item["job"]["state"].as_str(), pointer)
        })
        .collect();
    let expected = [
        (0, Some("queued"), None),
        (1, None, Some("/jobs/1/priority")),
        (2, None, Some("/jobs/2/kind")),
        (3, None, Some("/jobs/3")),
        (4, Some("queued"), None),
        (5, None, Some("/jobs/5/metadata/a")),
        (6, Some("scheduled"), None),
    ];
    assert_eq!(shown, expected);
    assert!(data[1].get("job").is_none() && data[0].get("error").is_none());
    assert_eq!(api.get("/jobs").await.expect(200)["data"].as_array().unwrap().len(), 3);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_batch_has_its_bounds(pool: PgPool) {
    let api = Api::start(pool).await;
    for body in [
        json!({"jobs": []}),
        json!({"jobs": vec![json!({"kind": "noop"}); 1001]}),
    ] {
        let answer = api.post("/jobs/batch", body).await;
        answer.is_problem(422, "invalid_request");
        assert_eq!(answer.places(), ["/jobs"]);
    }
    api.post("/jobs/batch", json!({"jobs": 1}))
        .await
        .is_problem(422, "invalid_request");
    api.post("/jobs/batch", json!({"job": []}))
        .await
        .is_problem(422, "invalid_request");
    let full = api
        .post("/jobs/batch", json!({"jobs": vec![json!({"kind": "noop"}); 1000]}))
        .await
        .expect(202);
    assert!(
        full["data"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["job"]["state"] == "queued")
    );
}

async fn keyed(api: &Api, jobs: &Value) -> Answer {
    let request = api
        .request(Method::POST, "/jobs/batch")
        .header("idempotency-key", "batch");
    answer(request.json(&json!({"jobs": jobs}))).await
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_key_covers_the_whole_batch(pool: PgPool) {
    let api = Api::start(pool).await;
    let jobs = json!([{"kind": "noop"}, {"kind": "dance"}, {"kind": "noop", "priority": 1}]);
    let first = keyed(&api, &jobs).await.expect(202);
    let again = keyed(&api, &jobs).await.expect(202);
    for index in [0, 2] {
        assert_eq!(again["data"][index]["job"]["id"], first["data"][index]["job"]["id"]);
    }
    assert_eq!(again["data"][1]["error"]["code"], "invalid_request");
    assert_eq!(again["data"][2]["job"]["priority"], 1);
    keyed(&api, &json!([{"kind": "noop"}]))
        .await
        .is_problem(422, "idempotency_key_reused");
    assert_eq!(api.get("/jobs").await.expect(200)["data"].as_array().unwrap().len(), 2);
}
