//! Turns of a conversation go where its sandbox is kept, while that worker lives.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON, Setup};

/// Counts its turns in the sandbox (`/tmp`) and in the workspace.
const COUNT: &str = "for f in /tmp/n /workspace/n; do \
    n=$(($(cat $f 2>/dev/null || echo 0) + 1)); echo $n > $f; printf \"$n \"; done";

async fn post(api: &Api, path: &str, body: Value, status: StatusCode) -> Value {
    let answer = api.call(Method::POST, path, Some(&body)).await.unwrap();
    let (got, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(got, status, "{body:#}");
    body
}

/// One turn: which worker had it, and what it counted.
async fn turn(api: &Api, talk: &str) -> (String, String) {
    let path = format!("/conversations/{talk}/turns");
    let turn = post(api, &path, json!({"text": "next"}), StatusCode::ACCEPTED).await;
    let job = api.succeeded(turn["job"]["id"].as_str().unwrap(), SOON).await;
    assert_eq!(job["attempt"], 1, "{job:#}");
    let attempts = api.attempts(job["id"].as_str().unwrap()).await;
    let worker = attempts[0]["worker_id"].as_str().unwrap().to_owned();
    (worker, job["result"]["text"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_go_where_their_sandbox_is_kept() {
    let mut cluster = Cluster::start(Setup::default()).await;
    let api = cluster.api.clone();
    let agent = json!({"harness": "command", "command": ["bash", "-c", COUNT]});
    let mut talks = Vec::new();
    for _ in 0..3 {
        let made = post(&api, "/conversations", json!({"agent": agent}), StatusCode::CREATED).await;
        let talk = made["id"].as_str().unwrap().to_owned();
        let (worker, counted) = turn(&api, &talk).await;
        assert_eq!(counted, "1 1 ");
        talks.push((talk, worker));
    }
    for round in 2..=5 {
        for (talk, first) in &talks {
            let (worker, counted) = turn(&api, talk).await;
            assert_eq!((&worker, counted), (first, format!("{round} {round} ")));
        }
    }

    let (talk, dead) = talks.remove(0);
    let index = cluster.worker_of(&dead);
    cluster.workers[index].kill();
    let (worker, counted) = turn(&api, &talk).await;
    assert_ne!(worker, dead);
    assert_eq!(counted, "1 6 ", "another sandbox, the same files");
    let (again, counted) = turn(&api, &talk).await;
    assert_eq!((again, counted), (worker, "2 7 ".to_owned()));
}
