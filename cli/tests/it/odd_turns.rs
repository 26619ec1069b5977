//! Turns that meet what nobody hopes for, over real processes and on both wires: providers that refuse, break off or fall
//! silent, models that call what there is not or never stop, odd words, much output, and a conversation that is deleted under
//! them. Each ends with its reason, and what comes after it runs.

use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON, Sandboxes, Setup, eventually};
use crate::talking::{Model, STOPPED, Talk, WIRES, event, left_in_redis, runs};

/// How a provider refuses: the status, its word for it, and what that means for a job that has no other model.
const REFUSALS: [(u16, &str, &str); 9] = [
    (400, "invalid_request_error", "model_refused"),
    (401, "authentication_error", "model_refused"),
    (402, "billing_error", "model_refused"),
    (403, "permission_error", "model_refused"),
    (404, "not_found_error", "model_refused"),
    (413, "request_too_large", "model_refused"),
    (500, "api_error", "model_failed"),
    (503, "api_error", "model_failed"),
    (529, "overloaded_error", "model_failed"),
];

async fn start(model: &Model, sandboxes: Sandboxes) -> Cluster {
    let settings = model.settings(&[
        ("HOTHOUSE_MODEL__RETRY__RETRIES_MAX", "1"),
        ("HOTHOUSE_MODEL__RETRY__BACKOFF_INITIAL", "10ms"),
        ("HOTHOUSE_MODEL__SERVERS__ANT__SILENCE_TIMEOUT", "2s"),
        ("HOTHOUSE_MODEL__SERVERS__OAI__SILENCE_TIMEOUT", "2s"),
    ]);
    Cluster::start(Setup {
        workers: 1,
        sandboxes,
        settings,
        ..Setup::default()
    })
    .await
}

fn other(wire: &str) -> &'static str {
    WIRES.into_iter().find(|one| *one != wire).unwrap()
}

/// The next turn runs, over the other wire, with all that was said before.
async fn goes_on(api: &Api, talk: &Talk, wire: &str) {
    talk.assert_idle().await;
    talk.change(&json!({"models": [format!("{}/m", other(wire))]})).await;
    let next = api.succeeded(&talk.turn("still there?", &json!({})).await, SOON).await;
    assert_eq!(next["result"]["text"], "Still here.", "{next:#}");
}

fn rule(says: &str, reply: impl Into<Value>) -> Value {
    let reply = reply.into();
    json!({"when": {"user_contains": says}, "reply": reply})
}

fn step(says: &str, step: usize, reply: impl Into<Value>) -> Value {
    let reply = reply.into();
    json!({"when": {"user_contains": says, "step": step}, "reply": reply})
}

fn bash(command: &str) -> Value {
    json!({"tool_call": {"name": "bash", "input": {"command": command}}})
}

/// Models that refuse, at once or after their first word.
fn refusing() -> Vec<(String, Value)> {
    let script =
        |reply: Value| json!({"rules": [rule("still there?", json!([{"text": "Still here."}])), {"reply": reply}]});
    let mut scripts = vec![("m".to_owned(), script(json!([{"text": "The other one."}])))];
    for (status, kind, _) in REFUSALS {
        let error = json!({"error": {"status": status, "kind": kind, "message": "a secret of the provider"}});
        for name in ["at-once", "alone"] {
            scripts.push((format!("{name}-{status}"), script(json!([error]))));
        }
        scripts.push((format!("late-{status}"), script(json!([{"text": "Half a"}, error]))));
    }
    scripts.push(("late-cut".to_owned(), script(json!([{"text": "Half a"}, "cut"]))));
    scripts.push(("late-stall".to_owned(), script(json!([{"text": "Half a"}, "stall"]))));
    scripts.push(("at-once-cut".to_owned(), script(json!(["cut"]))));
    scripts.push(("alone-cut".to_owned(), script(json!(["cut"]))));
    scripts
}

/// Takes one turn with these models, of two tries at most; answers its job.
async fn take(api: &Api, models: Value) -> (Talk, Value) {
    let talk = Talk::begin(api, json!({"harness": "native", "models": models, "tools": []})).await;
    let backoff = json!({"initial": "1ms", "factor": 1, "max": "1ms"});
    let job = talk.turn("go", &json!({"max_attempts": 2, "backoff": backoff})).await;
    let job = api.ended(&job, SOON).await;
    (talk, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_fail_in_every_way_before_the_first_token_and_after_it() {
    let scripts = refusing();
    let scripts: Vec<(&str, Value)> = scripts
        .iter()
        .map(|(name, json)| (name.as_str(), json.clone()))
        .collect();
    let model = Model::start(&scripts).await;
    let cluster = start(&model, Sandboxes::None).await;
    let api = &cluster.api;
    let cut = ("cut".to_owned(), "model_failed");
    let stall = ("stall".to_owned(), "model_failed");
    let refusals = REFUSALS.map(|(status, _, code)| (status.to_string(), code));
    for wire in WIRES {
        for (how, _) in refusals.iter().chain([&cut]) {
            // Before the first token the next model answers, unless it is the request that is at fault.
            let models = json!([format!("{wire}/at-once-{how}"), format!("{}/m", other(wire))]);
            let (talk, job) = take(api, models).await;
            let expected = if how == "400" { "failed" } else { "succeeded" };
            assert_eq!(
                (&job["state"], &job["attempt"]),
                (&json!(expected), &json!(1)),
                "{wire} {how}: {job:#}"
            );
            goes_on(api, &talk, wire).await;
        }
        let alone = refusals
            .iter()
            .chain([&cut])
            .map(|(how, code)| (format!("alone-{how}"), *code));
        let late = refusals
            .iter()
            .chain([&cut, &stall])
            .map(|(how, code)| (format!("late-{how}"), *code));
        for (name, code) in alone.chain(late) {
            let (talk, job) = take(api, json!([format!("{wire}/{name}")])).await;
            let told = format!("{wire} {name}: {job:#}");
            assert_eq!(
                (&job["state"], &job["error"]["code"]),
                (&json!("failed"), &json!(code)),
                "{told}"
            );
            let attempts = if code == "model_failed" { 2 } else { 1 };
            assert_eq!(job["attempt"], attempts, "{told}");
            goes_on(api, &talk, wire).await;
        }
    }
    model.assert_valid();
    assert!(left_in_redis(&cluster).is_empty(), "{:?}", left_in_redis(&cluster));
}

fn odd() -> Value {
    let text = |text: &str| json!([{"text": text}]);
    let unknown = json!({"tool_call": {"name": "telnet", "input": {"host": "x"}}});
    let broken = json!({"tool_call": {"name": "bash", "input": "{\"command\": "}});
    let much = "echo BEGIN; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo END";
    json!({"rules": [
        rule("still there?", text("Still here.")),
        rule("loop", json!([{"text": "Again."}, bash("true")])),
        step("much", 0, json!([bash(much)])),
        rule("much", text("It was much.")),
        step("broken", 0, json!([broken, unknown, bash("echo whole")])),
        rule("broken", text("{{output}}")),
        rule("", text("{{user}}")),
    ]})
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_words_and_odd_calls_are_answered_and_the_conversation_goes_on() {
    let model = Model::start(&[("m", odd())]).await;
    let cluster = start(&model, Sandboxes::Bubblewrap).await;
    let api = &cluster.api;
    for wire in WIRES {
        let agent = json!({"harness": "native", "models": [format!("{wire}/m")], "tools": ["bash"], "max_steps": 3});
        let talk = Talk::begin(api, agent).await;
        let turn = async |text: &str| api.ended(&talk.turn(text, &json!({})).await, 2 * SOON).await;
        // A NUL, a bell, an escape sequence, a carriage return, words from right to left, a mark of byte order.
        let said = "a\u{0}b\u{7}\u{1b}[31mred\r\n\u{202e}back\u{feff}\u{85}";
        let job = turn(said).await;
        assert_eq!(
            (&job["state"], &job["result"]["text"]),
            (&json!("succeeded"), &json!(said)),
            "{job:#}"
        );

        let job = turn("loop").await;
        assert_eq!(
            (&job["error"]["code"], &job["result"]["steps"]),
            (&json!("max_steps"), &json!(3)),
            "{job:#}"
        );

        let job = turn("much").await;
        assert_eq!(job["result"]["text"], "It was much.", "{job:#}");
        let asked = model.asked().pop().unwrap().to_string();
        assert!(
            asked.contains("BEGIN") && asked.contains("END") && asked.len() < 64 << 10,
            "{} bytes",
            asked.len()
        );
        let log = api.events(job["id"].as_str().unwrap()).await;
        let bytes = json!(log).to_string().len();
        assert!(bytes < 4 << 20, "the log of it is {bytes} bytes");

        let job = turn("broken").await;
        let text = job["result"]["text"].as_str().unwrap();
        assert!(
            text.contains("whole\n") && text.contains("telnet"),
            "each call has its answer: {text}"
        );
        assert_eq!(job["failures"], 0, "{job:#}");
        goes_on(api, &talk, wire).await;
    }
    model.assert_valid();
}

/// Asserts that a conversation and its turn are gone, and that nothing of them is left.
async fn is_forgotten(cluster: &Cluster, talk: &Talk, job: &str) {
    let ended = cluster.api.ended(job, STOPPED).await;
    assert_eq!(ended["state"], "cancelled", "{ended:#}");
    let path = format!("/conversations/{}", talk.id);
    assert_eq!(cluster.api.call(Method::GET, &path, None).await.unwrap().status(), 404);
    let id = &talk.id;
    let left = format!(
        "select 'message' from messages where conversation_id = '{id}'
         union all select 'journal' from journal where job_id = '{job}'
         union all select 'events' from job_events where job_id = '{job}'
         union all select 'workspace' from workspaces where owner = '{id}'
         union all select 'result' from jobs where id = '{job}' and result is not null"
    );
    eventually(SOON, "everything that was said is forgotten", || {
        cluster.sql(&left).is_empty().then_some(())
    })
    .await;
    eventually(STOPPED, "no place and no lease is left", || {
        left_in_redis(cluster).is_empty().then_some(())
    })
    .await;
}

async fn delete(cluster: &Cluster, talk: &Talk) {
    let path = format!("/conversations/{}", talk.id);
    assert_eq!(
        cluster.api.call(Method::DELETE, &path, None).await.unwrap().status(),
        204
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_deleted_under_its_running_turn() {
    let script = json!({"rules": [
        step("run", 0, json!([{"text": "A secret."}, bash("echo secret > f; echo ready; sleep 61.75")])),
        rule("stream", json!([{"text": "A secret."}, "stall"])),
        step("save", 0, json!([{"text": "A secret."}, bash("echo secret > f")])),
        rule("save", json!([{"text": "Done."}])),
    ]});
    let model = Model::start(&[("m", script)]).await;
    let cluster = start(&model, Sandboxes::Bubblewrap).await;
    for (says, kind) in [
        ("run", "tool.output"),
        ("stream", "message.delta"),
        ("save", "tool.finished"),
    ] {
        let agent = json!({"harness": "native", "models": ["ant/m"], "tools": ["bash"]});
        let talk = Talk::begin(&cluster.api, agent).await;
        let held = match says {
            "save" => Some(cluster.hold("lock table workspaces in share mode").await),
            _ => None,
        };
        let job = talk.turn(says, &json!({})).await;
        event(&cluster.api, &job, |event| event["type"] == kind).await;
        if held.is_some() {
            cluster.waits("insert into workspaces ").await;
        }
        // Forgetting it needs the table too.
        let released = async {
            let deleted = format!(
                "select 1 from conversations where id = '{}' and deleted_at is not null",
                talk.id
            );
            eventually(SOON, "it is deleted", || {
                (!cluster.sql(&deleted).is_empty()).then_some(())
            })
            .await;
            drop(held);
        };
        tokio::join!(delete(&cluster, &talk), released);
        eventually(STOPPED, "its programs are dead", || {
            (!runs("sleep 61.75")).then_some(())
        })
        .await;
        is_forgotten(&cluster, &talk, &job).await;
    } // Where what was said cannot be forgotten in time, the conversation is deleted all the same, and forgotten later.
    let talk = Talk::begin(&cluster.api, json!({"harness": "chat", "models": ["ant/m"]})).await;
    let job = talk.turn("stream", &json!({"delay": "1h"})).await;
    let held = cluster.hold("lock table journal_begun in access exclusive mode").await;
    delete(&cluster, &talk).await;
    drop(held);
    is_forgotten(&cluster, &talk, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_deleted_under_a_running_turn_of_claude_code() {
    let input = json!({"command": "echo secret > f; sleep 63.25", "description": "a nap"});
    let script = json!({"rules": [
        step("zebra naps", 0, json!([{"text": "A secret."}, {"tool_call": {"name": "Bash", "input": input}}])),
        rule("zebra streams", json!([{"text": "A secret."}, "stall"])),
    ]});
    let model = Model::start(&[("m", script)]).await;
    let cluster = start(&model, Sandboxes::Docker).await;
    for (says, kind) in [("zebra naps", "tool.started"), ("zebra streams", "message.delta")] {
        let talk = Talk::begin(&cluster.api, json!({"harness": "claude_code", "models": ["ant/m"]})).await;
        let job = talk.turn(says, &json!({})).await;
        event(&cluster.api, &job, |event| event["type"] == kind).await;
        if kind == "tool.started" {
            eventually(SOON, "its program runs", || runs("sleep 63.25").then_some(())).await;
        }
        delete(&cluster, &talk).await;
        eventually(STOPPED, "its programs are dead", || {
            (!runs("sleep 63.25")).then_some(())
        })
        .await;
        is_forgotten(&cluster, &talk, &job).await;
    }
}
