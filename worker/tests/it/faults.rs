//! What a turn does with what is unusual: much output, control characters, images, addresses, and a sandbox that is taken
//! before the model has written what for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use common::job::NewJob;
use common::job::event::EventBody;
use common::job::spec::{JobSpec, Kind};
use common::message::Part;
use serde_json::{Value, json};
use sqlx::PgPool;
use tempfile::TempDir;
use worker::egress::Settings;
use worker::executor::Means;
use worker::model;

use crate::attempts::{Bench, Done};
use crate::egress_server::Server;
use crate::model_server::ModelServer;

/// Models of which `scripted/test` plays this.
fn playing(script: &Value) -> (model::Settings, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("test.json"), script.to_string()).unwrap();
    let settings = model::Settings {
        scripts: Some(folder.path().to_owned()),
        ..model::Settings::default()
    };
    (settings, folder)
}

/// One call, and then its output as the answer.
fn calling(name: &str, input: &Value) -> Value {
    let call = json!({"tool_call": {"name": name, "input": input}});
    json!({"rules": [{"when": {"step": 0}, "reply": [call]}, {"reply": [{"text": "done"}]}]})
}

fn run_of(bench: &Bench, agent: &Value, input: &str) -> NewJob {
    let mut spec = JobSpec::new(Kind::AgentRun);
    spec.timeout = Duration::from_mins(2);
    bench.job(spec, &json!({"input": input, "agent": agent}))
}

fn only_result(done: &Done) -> (bool, &str) {
    let mut parts = done.ended.messages.iter().flat_map(|message| &message.parts);
    let result = parts.find_map(|part| match part {
        Part::ToolResult { is_error, output, .. } => Some((*is_error, output.as_str())),
        _ => None,
    });
    result.unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn twenty_megabytes_of_output_are_cut_for_the_model_and_harm_nobody(pool: PgPool) {
    let command = "echo BEGIN; head -c 20000000 /dev/zero | tr '\\0' 'x'; echo; echo END";
    let (models, _folder) = playing(&calling("bash", &json!({ "command": command })));
    let bench = Bench::new(pool, models, |_| {}).await;
    let agent = json!({"models": ["scripted/test"], "tools": ["bash"]});
    let done = bench.run(&run_of(&bench, &agent, "go")).await;
    assert_eq!(done.result()["text"], "done");
    let (is_error, output) = only_result(&done);
    assert!(!is_error && output.len() < 34 << 10, "{} bytes", output.len());
    assert!(
        output.starts_with("BEGIN\n") && output.trim_end().ends_with("END"),
        "both ends are kept"
    );
    done.settle().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn control_characters_pass_unchanged(pool: PgPool) {
    let (models, _folder) = playing(&json!({"rules": [{"reply": [{"text": "{{user}}"}]}]}));
    let bench = Bench::new(pool, models, |_| {}).await;
    let agent = json!({"models": ["scripted/test"], "instructions": "\u{0}\u{1b}]0;x\u{7}", "tools": ["bash"]});
    let input = "a\u{0}b\u{1}\u{8}\u{1b}[31mred\r\n\u{7f}\u{85}\u{2028}\u{202e}\u{feff}\u{fffe}z";
    let done = bench.run(&run_of(&bench, &agent, input)).await;
    assert_eq!(done.result()["text"], input);
    // What was finished is in Postgres as it was said.
    let journal = bench.env.store.journal(done.job.id).await.unwrap();
    assert_eq!(journal.len(), 1);
    let kept: Value = serde_json::from_str(&journal[0].data).unwrap();
    assert_eq!(kept["message"]["parts"][0]["text"], input);
    done.settle().await;
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn the_sandbox_is_taken_while_the_model_still_writes_the_call(pool: PgPool) {
    let command = format!("echo ran # {}", "slowly ".repeat(15));
    let mut script = calling("bash", &json!({ "command": command }));
    script["pause"] = json!("150ms");
    script["piece_chars"] = json!(4);
    let (models, _folder) = playing(&script);
    let bench = Bench::new(pool, models, |_| {}).await;
    let agent = json!({"models": ["scripted/test"], "tools": ["bash"]});
    let job = run_of(&bench, &agent, "go");
    let leased = || bench.machine.pool.as_ref().unwrap().status()[0].leased;
    let taken = async {
        common::testing::eventually(Duration::from_secs(30), "a sandbox is taken", || async {
            (leased() == 1).then_some(())
        })
        .await;
        let events = bench.env.events(job.tenant_id, job.id, 1_000).await;
        let has_begun = |body: &EventBody| matches!(body, EventBody::ToolStarted { .. });
        assert!(
            !events.iter().any(|event| has_begun(&event.body)),
            "the call was whole by then"
        );
    };
    let (done, ()) = tokio::join!(bench.run(&job), taken);
    assert_eq!(only_result(&done), (false, "ran\n"));
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn an_address_is_fetched_when_both_lists_name_it(pool: PgPool) {
    let server = Server::plain().await;
    let port = server.address.port();
    let fetch =
        |host: &str| json!({"tool_call": {"name": "fetch", "input": {"url": format!("http://{host}:{port}/page")}}});
    let (models, _folder) = playing(&json!({"rules": [
        {"when": {"step": 0}, "reply": [fetch("plain.test"), fetch("other.test")]},
        {"reply": [{"text": "done"}]},
    ]}));
    let allowed = format!("plain.test:{port}");
    let list = vec![allowed.clone(), format!("other.test:{port}")];
    let mut bench = Bench::new(pool, models, |environment| environment.egress = list).await;
    let here: Vec<std::net::IpAddr> = vec!["127.0.0.1".parse().unwrap()];
    let hosts = ["plain.test", "other.test"].map(|host| (host.to_owned(), here.clone()));
    bench.machine.egress = Arc::new(Means {
        settings: Settings {
            private: vec!["127.0.0.1/32".parse().unwrap()],
            hosts: hosts.into(),
            ..Settings::default()
        },
        certificates: bytes::Bytes::new(),
    });
    let agent = json!({"models": ["scripted/test"], "tools": ["fetch"], "egress": {"allow": [allowed]}});
    let done = bench.run(&run_of(&bench, &agent, "go")).await;
    assert_eq!(done.result()["text"], "done");
    let results: Vec<(bool, String)> = done
        .ended
        .messages
        .iter()
        .flat_map(|message| &message.parts)
        .filter_map(|part| match part {
            Part::ToolResult { is_error, output, .. } => Some((*is_error, output.clone())),
            _ => None,
        })
        .collect();
    assert!(!results[0].0 && results[0].1.starts_with("HTTP 200"), "{results:?}");
    assert!(results[1].0, "the agent's list does not name it: {results:?}");
    assert_eq!(server.connections(), 1);
    assert!(server.heard().contains("GET /page"), "{}", server.heard());
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn images_are_shown_to_the_models_of_both_wires(pool: PgPool) {
    let server = ModelServer::demo().await;
    let models = model::Settings {
        anthropic: server.settings(),
        openai: server.settings(),
        ..model::Settings::default()
    };
    let bench = Bench::new(pool, models, |_| {}).await;
    let files = json!([{"path": "a.gif", "content_base64": "R0lGODlh"}, {"path": "b.csv", "content": "1,2"}]);
    let source = json!({"type": "base64", "media_type": "image/gif", "data": "R0lGODlh"});
    let shown = [
        ("anthropic/demo", json!({"type": "image", "source": source})),
        (
            "openai/demo",
            json!({"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh"}}),
        ),
    ];
    for (model, block) in shown {
        let agent = json!({"models": [model], "tools": ["files"]});
        let input = json!({"input": "what is this?", "agent": agent, "files": files});
        let done = bench.run(&bench.job(JobSpec::new(Kind::AgentRun), &input)).await;
        done.result();
        done.settle().await;
        let (_, request) = server.requests().pop().unwrap();
        let said = request["messages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|message| message["role"] == "user");
        let content = said.unwrap()["content"].as_array().unwrap();
        assert!(content.contains(&block), "{model}: {content:#?}");
        let names = |block: &Value| block["text"].as_str().is_some_and(|text| text.contains("b.csv"));
        assert!(
            content.iter().any(names),
            "of other files the model sees the name: {content:#?}"
        );
    }
    bench.end().await;
}
