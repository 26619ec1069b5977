//! Claude Code on real workers: a turn whose worker is killed, and a session that goes on at another.

use serde_json::{Value, json};

use crate::cluster::{Cluster, SOON, Setup};

/// A turn of a conversation; the id of its job.
async fn turn(cluster: &Cluster, conversation: &str, text: &str) -> String {
    let path = format!("/conversations/{conversation}/turns");
    let answer = cluster
        .api
        .call(reqwest::Method::POST, &path, Some(&json!({"text": text})))
        .await
        .unwrap();
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(status, 202, "{body:#}");
    body["job"]["id"].as_str().unwrap().to_owned()
}

/// The worker of a job that runs.
async fn worker_of(cluster: &Cluster, job: &str) -> usize {
    let path = format!("/jobs/{job}");
    let worker = cluster
        .api
        .until(SOON, &path, |job| job["worker_id"].as_str().map(str::to_owned))
        .await;
    cluster.worker_of(&worker)
}

fn has(events: &[Value], kind: &str, is_it: impl Fn(&Value) -> bool) -> bool {
    events.iter().any(|event| event["type"] == kind && is_it(event))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_where_its_worker_was_killed() {
    let mut cluster = Cluster::start(Setup {
        warm: 0,
        ..Setup::default()
    })
    .await;
    let agent = json!({"harness": "claude_code", "models": ["scripted/slow"], "instructions": "Be brief."});
    let path = reqwest::Method::POST;
    let made = cluster
        .api
        .call(path, "/conversations", Some(&json!({ "agent": agent })))
        .await
        .unwrap();
    let made: Value = made.json().await.unwrap();
    let talk = made["id"].as_str().unwrap().to_owned();
    let first = turn(&cluster, &talk, "the first word is elephant").await;
    let job = cluster.api.succeeded(&first, 2 * SOON).await;
    assert!(job["result"]["text"].as_str().unwrap().contains("elephant"), "{job:#}");

    // Long enough to be killed in its middle.
    let text = "word ".repeat(300);
    let second = turn(&cluster, &talk, &text).await;
    let at = worker_of(&cluster, &second).await;
    let events = format!("/jobs/{second}/events");
    cluster
        .api
        .until(2 * SOON, &events, |page| {
            let all = page["data"].as_array()?;
            has(all, "message.delta", |_| true).then_some(())
        })
        .await;
    cluster.workers[at].kill();
    let job = cluster.api.succeeded(&second, 3 * SOON).await;
    assert_eq!((&job["attempt"], &job["losses"]), (&json!(2), &json!(1)), "{job:#}");
    let events = cluster.api.events(&second).await;
    // The other worker found the session of the first turn in the workspace that was saved then.
    assert!(
        has(&events, "status", |event| event["phase"] == "running"
            && event["detail"] == "resumed"
            && event["attempt"] == 2),
        "{events:#?}"
    );
    let messages = cluster.api.get(&format!("/conversations/{talk}/messages")).await;
    let roles: Vec<&str> = messages["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["role"].as_str())
        .collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"], "{messages:#}");
}
