//! Turns and runs of agents over real processes: workers that are killed in the middle, providers that want to be left
//! alone, and the models that anybody can play.

use std::process::Stdio;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::cluster::{Cluster, SOON, Sandboxes, Setup, assert_whole, eventually};
use crate::provider::{Answer, Provider};

/// Settings must live as long as the test's process.
fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

async fn cluster(provider: &Provider, workers: usize) -> Cluster {
    let settings = vec![
        ("HOTHOUSE_MODEL__SERVERS__TEST__BASE_URL", leaked(provider.url.clone())),
        ("HOTHOUSE_MODEL__RETRY__RETRY_AFTER_MAX", "1s"),
    ];
    Cluster::start(Setup {
        workers,
        sandboxes: Sandboxes::None,
        settings: Box::leak(settings.into_boxed_slice()),
        ..Setup::default()
    })
    .await
}

async fn post(cluster: &Cluster, path: &str, body: &Value) -> Value {
    let answer = cluster.api.call(Method::POST, path, Some(body)).await.unwrap();
    let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert!(status.is_success(), "{status} {body:#}");
    body
}

fn agent() -> Value {
    json!({"name": "asker", "harness": "native", "models": ["test/m"], "tools": [], "max_steps": 40})
}

const STEPS: usize = 12;
/// Jobs of a round; each is at another step when their worker is killed.
const JOBS: usize = 24;
const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_repeat_no_call_that_is_in_the_journal() {
    let rule = |_: &str, step: usize| match step {
        STEPS => Answer::Text("done".to_owned()),
        _ => Answer::Call(format!("step {step}")),
    };
    let provider = Provider::start(Duration::from_millis(60), rule).await;
    let mut cluster = cluster(&provider, 2).await;
    let agent = post(&cluster, "/agents", &agent()).await;
    let runs = format!("/agents/{}/runs", agent["id"].as_str().unwrap());
    let mut killed = 0;
    for round in 0..ROUNDS {
        let mut ids = Vec::new();
        for n in 0..JOBS {
            let body = json!({"input": format!("{round}-{n}"), "timeout": "120s"});
            ids.push(post(&cluster, &runs, &body).await["id"].as_str().unwrap().to_owned());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let victim = round % 2;
        cluster.workers[victim].kill();
        for id in &ids {
            cluster.api.succeeded(id, 3 * SOON).await;
        }
        cluster.workers[victim].start();
        for (n, id) in ids.iter().enumerate() {
            let job = cluster.api.job(id).await;
            assert_eq!(
                (&job["failures"], &job["result"]["text"]),
                (&json!(0), &json!("done")),
                "{job:#}"
            );
            killed += usize::from(job["losses"] == 1);
            let events = cluster.api.events(id).await;
            assert_whole(&job, &events);
            let written = format!("select step from journal where job_id = '{id}' and place = -1 and attempt = 1");
            let calls = provider.calls();
            for step in cluster.sql(&written) {
                let key = (format!("{round}-{n}"), step.parse().unwrap());
                assert_eq!(calls[&key], 1, "a finished call was made again: {key:?}");
            }
            // One whose beginning was not written yet when its worker died is the only one that nobody can count.
            let begun = format!("select step from journal_begun where job_id = '{id}' and place = -1 and attempt = 1");
            let begun = cluster.sql(&begun);
            let of_job = calls.iter().filter(|((said, _), _)| *said == format!("{round}-{n}"));
            for ((_, step), _) in of_job.filter(|(_, count)| **count > 1) {
                let is_counted = begun.contains(&step.to_string());
                assert!(!is_counted || says_one_is_repeated(&events), "step {step}: {events:#?}");
            }
        }
    }
    assert!(
        killed >= ROUNDS * JOBS / 4,
        "only {killed} jobs were under way when their worker was killed"
    );
}

fn says_one_is_repeated(events: &[Value]) -> bool {
    events.iter().any(|event| {
        event["phase"] == "resumed"
            && event["detail"]
                .as_str()
                .is_some_and(|detail| detail.contains("; 1 model"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_waits_for_its_provider_and_goes_on_by_itself_or_is_cancelled_and_leaves_what_it_said() {
    let rule = |said: &str, step: usize| match (said, step) {
        (_, 0) => Answer::Call("First.".to_owned()),
        ("short", 1) => Answer::Busy(3),
        _ => Answer::Text("Here it is.".to_owned()),
    };
    let provider = Provider::start(Duration::ZERO, rule).await;
    let cluster = cluster(&provider, 1).await;
    let mut definition = agent();
    definition.as_object_mut().unwrap().remove("name");
    let talk = post(&cluster, "/conversations", &json!({ "agent": definition })).await;
    let path = format!("/conversations/{}", talk["id"].as_str().unwrap());
    let turns = format!("{path}/turns");

    let turn = post(&cluster, &turns, &json!({"text": "short"})).await;
    let id = turn["job"]["id"].as_str().unwrap().to_owned();
    let waiting = |job: &Value| job["state"] == "waiting";
    let job = cluster.api.job_until(&id, SOON, waiting).await;
    assert!(job["waiting_for"].to_string().contains("provider"), "{job:#}");
    // It comes back by itself, is refused again, and waits again: nothing of that counts against it.
    let job = cluster
        .api
        .job_until(&id, SOON, |job| job["attempt"].as_u64() >= Some(3))
        .await;
    assert_eq!((&job["failures"], &job["losses"]), (&json!(0), &json!(0)), "{job:#}");
    cluster.api.job_until(&id, SOON, waiting).await;
    assert_eq!(
        provider.calls()[&("short".to_owned(), 0)],
        1,
        "the finished step is not asked again"
    );

    post(&cluster, &format!("/jobs/{id}/cancel"), &json!({})).await;
    cluster
        .api
        .job_until(&id, SOON, |job| job["state"] == "cancelled")
        .await;
    let messages = cluster.api.get(&format!("{path}/messages")).await;
    let text = messages.to_string();
    assert!(
        text.contains("First."),
        "what was said before the wait is kept: {messages:#}"
    );
    assert_eq!(text.matches("First.").count(), 1, "{messages:#}");

    let next = post(&cluster, &turns, &json!({"text": "and now?"})).await;
    let next = next["job"]["id"].as_str().unwrap().to_owned();
    let job = cluster.api.succeeded(&next, SOON).await;
    assert_eq!(job["result"]["text"], "Here it is.", "{job:#}");
    let request = provider.last();
    let roles: Vec<&str> = request["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["role"].as_str().unwrap())
        .collect();
    assert_eq!(
        roles,
        ["user", "assistant", "tool", "user", "assistant", "tool"],
        "{request:#}"
    );
}

#[tokio::test]
async fn scripted_models_are_served_to_anybody() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_hothouse"))
        .args(["scripted", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut out, mut errors) = (
        BufReader::new(process.stdout.take().unwrap()).lines(),
        BufReader::new(process.stderr.take().unwrap()).lines(),
    );
    let line = tokio::time::timeout(SOON, async {
        tokio::select! {
            Ok(Some(line)) = out.next_line() => line,
            Ok(Some(line)) = errors.next_line() => line,
        }
    });
    let line = line.await.unwrap();
    let address = line.rsplit_once("http://").unwrap().1.trim().to_owned();
    let client = reqwest::Client::builder().timeout(SOON).build().unwrap();
    let call = async |path: &str, body: Value| {
        let url = format!("http://{address}{path}");
        let answer = client
            .post(url)
            .bearer_auth("any")
            .header("x-api-key", "any")
            .json(&body)
            .send()
            .await
            .unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    let said = json!([{"role": "user", "content": "hello there"}]);
    let body = json!({"model": "demo", "max_tokens": 50, "messages": said});
    let (status, text) = call("/v1/messages", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert!(
        answer["content"][0]["text"].as_str().unwrap().contains("hello there"),
        "{text}"
    );
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let (status, text) = call("/v1/chat/completions", streamed).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(
        text.contains("chat.completion.chunk") && text.trim_end().ends_with("data: [DONE]"),
        "{text}"
    );
    let broken = json!({"model": "demo", "max_tokens": 50, "messages": [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "x", "input": {}}]}]});
    let (status, text) = call("/v1/messages", broken).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    let told = client.get(format!("http://{address}/told")).send().await.unwrap();
    let told: Value = told.json().await.unwrap();
    assert_eq!(told["calls"], 2, "{told:#}");
    eventually(SOON, "it lives", || process.try_wait().unwrap().is_none().then_some(())).await;
}
