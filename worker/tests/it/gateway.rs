//! The model gateway from inside real sandboxes: plain HTTP, and the client libraries that people use.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::clock::Clock;
use common::job::event::EventBody;
use common::message::Usage;
use serde_json::{Value, json};
use worker::executor::native::EventSink;
use worker::gateway::{Gateway, Room, Terms};
use worker::model::scripted::Scripted;
use worker::model::scripted::frame::Frame;
use worker::model::scripted::script::Script;
use worker::model::{self, Caller, ModelName, ModelProvider, Providers, RetryPolicy};
use worker::sandbox::{Output, PutFiles, RunSpec, Sandbox};

use crate::conformance::Subject;
use crate::model_server::{Canned, KEY, ModelServer};

macro_rules! gateways {
    ($driver:ident, $subject:path; $($promise:ident),* $(,)?) => {
        mod $driver {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let subject = $subject().await;
                Box::pin(super::$promise(&subject)).await;
                subject.has_nothing_left().await;
            })*
        }
    };
    ($($promise:ident),* $(,)?) => {
        gateways!(docker, crate::docker::subject; $($promise),*);
        gateways!(bubblewrap, crate::sandbox_bubblewrap::subject; $($promise),*);
    };
}

gateways!(
    every_route_answers_and_is_counted,
    what_is_not_allowed_is_refused,
    a_token_is_good_for_its_own_attempt_alone,
    the_token_of_a_process_from_before_is_given_up_unless_it_called,
    the_provider_gets_the_key_and_the_same_bytes,
    a_provider_that_repeats_its_key_is_not_repeated,
    the_next_model_is_asked_before_the_first_token_and_not_after,
    a_program_that_goes_away_has_used_what_it_has_used,
);

/// What scripts begin with: `ask` answers (status, text).
const PRELUDE: &str = r#"
import http.client, json, os, socket, sys
TOKEN = os.environ["ANTHROPIC_API_KEY"]
def start(method, path, body=None, headers=None):
    c = http.client.HTTPConnection("127.0.0.1", 3129, timeout=30)
    body = json.dumps(body) if isinstance(body, dict) else body
    c.request(method, path, body, {"x-api-key": TOKEN, "content-type": "application/json", **(headers or {})})
    return c.getresponse()
def ask(*args, **named):
    r = start(*args, **named); return r.status, r.read().decode()
def refusal(*args, **named):
    status, text = ask(*args, **named); return f"{status} " + json.loads(text)["error"]["type"]
def say(model, text="hello", **more):
    return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more}
"#;

/// A sandbox, and the gateway of an attempt in it.
struct World {
    sandbox: Sandbox,
    gateway: Gateway,
    said: Arc<Mutex<Vec<EventBody>>>,
}

fn names(models: &[&str]) -> Vec<ModelName> {
    models.iter().map(|name| name.parse().unwrap()).collect()
}

fn gateway(models: &[&str], providers: Providers) -> (Gateway, Arc<Mutex<Vec<EventBody>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&said);
    let sink = EventSink::new(move |body| heard.lock().unwrap().push(body));
    let retry = RetryPolicy {
        backoff_initial: Duration::from_millis(1),
        ..RetryPolicy::default()
    };
    let terms = Terms {
        shrinks: false,
        models: names(models),
        features: Vec::new(),
        room: Room::default(),
        caller: Caller::alone(providers, retry, Clock::system()).unwrap(),
    };
    (Gateway::new(terms, Arc::new(sink)), said)
}

/// Scripts by name, and the provider that plays them.
fn scripted(scripts: &[(&str, Value)]) -> (Arc<Scripted>, Providers) {
    let mut scripted = Scripted::built_in();
    for (name, script) in scripts {
        scripted = scripted.with(*name, serde_json::from_value::<Script>(script.clone()).unwrap());
    }
    let scripted = Arc::new(scripted);
    let provider: Arc<dyn ModelProvider> = Arc::clone(&scripted) as _;
    (scripted, Providers::new([("scripted".to_owned(), provider)]))
}

impl World {
    async fn new(subject: &Subject, models: &[&str], providers: Providers) -> Self {
        let (gateway, said) = gateway(models, providers);
        Self {
            sandbox: subject.sandbox().await,
            gateway,
            said,
        }
    }

    /// What a script prints while the gateway is open.
    async fn run(&self, script: &str) -> String {
        self.run_with(script, &[]).await
    }

    async fn run_with(&self, script: &str, more: &[(&str, &str)]) -> String {
        let own = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("PYTHONUNBUFFERED", "1")];
        let own = own
            .iter()
            .chain(more)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let spec = RunSpec {
            env: own.chain(self.gateway.variables()).collect(),
            ..RunSpec::new(["python3".to_owned(), "-c".to_owned(), format!("{PRELUDE}{script}")])
        };
        let work = async {
            let mut running = self.sandbox.run(spec).await.unwrap();
            let mut text = Vec::new();
            while let Some(output) = running.next().await {
                if let Output::Stdout(data) | Output::Stderr(data) = output {
                    text.extend_from_slice(&data);
                }
            }
            running.wait().await.unwrap();
            String::from_utf8_lossy(&text).trim().to_owned()
        };
        tokio::select! {
            text = work => text,
            never = self.gateway.serve(&self.sandbox) => match never {},
        }
    }

    /// The usage of each call, as followers see it.
    fn calls(&self) -> Vec<Value> {
        let said = self.said.lock().unwrap();
        said.iter()
            .filter_map(|body| match body {
                EventBody::Usage { usage } => Some(usage.clone()),
                _ => None,
            })
            .collect()
    }

    /// What followers were told besides.
    fn details(&self) -> String {
        let said = self.said.lock().unwrap();
        let detail = |body: &EventBody| match body {
            EventBody::Status { detail, .. } => detail.clone(),
            _ => None,
        };
        said.iter().filter_map(detail).collect::<Vec<_>>().join("\n")
    }
}

async fn every_route_answers_and_is_counted(subject: &Subject) {
    let (scripted, providers) = scripted(&[]);
    let world = World::new(subject, &["scripted/demo", "scripted/slow"], providers).await;
    let script = r#"
status, text = ask("POST", "/v1/messages", say("demo")); print(status, "You said" in json.loads(text)["content"][0]["text"])
status, text = ask("POST", "/v1/messages", say("scripted/demo", stream=True))
print(status, text.startswith("event: message_start"), text.rstrip().endswith('data: {"type":"message_stop"}'))
status, text = ask("POST", "/v1/messages/count_tokens", say("demo")); print(status, json.loads(text)["input_tokens"] > 0)
status, text = ask("POST", "/v1/chat/completions", say("demo")); print(status, "You said" in json.loads(text)["choices"][0]["message"]["content"])
status, text = ask("POST", "/v1/chat/completions", say("demo", stream=True)); print(status, text.rstrip().endswith("data: [DONE]"), '"usage":{' in text)
status, text = ask("POST", "/v1/chat/completions", say("demo", stream=True, stream_options={"include_usage": True})); print(status, '"usage":{' in text)
status, text = ask("GET", "/v1/models"); print(status, [m["id"] for m in json.loads(text)["data"]])
status, text = ask("POST", "/v1/messages", say("demo"), headers={"x-api-key": "", "authorization": "Bearer " + TOKEN}); print(status)
"#;
    let printed = world.run(script).await;
    let expected = "200 True\n200 True True\n200 True\n200 True\n200 True False\n200 True\n200 ['demo', 'slow']\n200";
    assert_eq!(printed, expected);
    let told = scripted.told();
    assert_eq!((told.calls, told.usage), (6, world.gateway.usage()));
    let numbers: Vec<u64> = world
        .calls()
        .iter()
        .map(|usage| usage["call"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
}

async fn what_is_not_allowed_is_refused(subject: &Subject) {
    let (scripted, providers) = scripted(&[]);
    let world = World::new(subject, &["scripted/demo"], providers).await;
    let script = r#"
print(refusal("POST", "/v1/messages", say("slow")))
print(refusal("POST", "/v1/messages", say("anthropic/demo")))
print(refusal("POST", "/v1/messages", say("demo", tools=[{"type": "web_fetch_20250910", "name": "web_fetch"}])))
print(refusal("POST", "/v1/messages", say("demo", mcp_servers=[{"type": "url", "url": "https://a.example", "name": "a"}])))
image = {"type": "image", "source": {"type": "url", "url": "https://a.example/?" + TOKEN}}
print(refusal("POST", "/v1/messages", {"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": [image]}]}))
image = {"type": "image_url", "image_url": {"url": "https://a.example/"}}
print(refusal("POST", "/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": [image]}]}))
print(refusal("POST", "/v1/messages", '{"model":"demo","model":"slow","max_tokens":1,"messages":[]}'))
print(refusal("POST", "/v1/messages", "no json"))
print(refusal("POST", "/v1/messages", b"\x1f\x8b", headers={"content-encoding": "gzip"}))
print(refusal("POST", "/v1/messages", say("demo", "x" * (33 << 20))))
print(refusal("POST", "/v1/messages", '{"model":"demo","max_tokens":1,"messages":[],"x":[' + '{"":0},' * (1 << 20) + '0]}'))
print(refusal("POST", "/v1/messages", say("slow", "x" * (2 << 20))))
for method, path in (("POST", "/v1/files"), ("GET", "/v1/messages"), ("POST", "/v1/messages/batches"), ("GET", "/v1/models/demo"),
        ("GET", "/"), ("POST", "/v1/responses"), ("POST", "http://api.anthropic.com/v1/files"), ("POST", "/v1/messages/../files")):
    print(refusal(method, path, ""))
"#;
    let printed = world.run(script).await;
    let mut lines: Vec<&str> = printed.lines().collect();
    let routes = lines.split_off(12);
    let no_model = "404 not_found_error";
    let beyond = "403 permission_error";
    let malformed = "400 invalid_request_error";
    assert_eq!(
        lines,
        [
            no_model,
            no_model,
            beyond,
            beyond,
            beyond,
            beyond,
            malformed,
            malformed,
            "415 invalid_request_error",
            "413 request_too_large",
            malformed,
            no_model
        ]
    );
    assert_eq!(routes, [no_model; 8]);
    assert_eq!(scripted.told().calls, 0);
    assert!(world.calls().is_empty());
}

async fn a_token_is_good_for_its_own_attempt_alone(subject: &Subject) {
    let (scripted, providers) = scripted(&[]);
    let world = World::new(subject, &["scripted/demo"], providers.clone()).await;
    let (before, _) = gateway(&["scripted/demo"], providers);
    assert_ne!(before.token(), world.gateway.token());
    let script = r#"
for key in (os.environ["BEFORE"], "", TOKEN[:-1], TOKEN + "0", TOKEN.upper()):
    print(refusal("POST", "/v1/messages", say("demo"), headers={"x-api-key": key}))
    print(refusal("GET", "/v1/models", headers={"x-api-key": "", "authorization": "Bearer " + key}))
print(refusal("GET", "/no/such/route", headers={"x-api-key": ""}))
print(ask("GET", "/v1/models")[0])
"#;
    let printed = world.run_with(script, &[("BEFORE", before.token())]).await;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..11], ["401 authentication_error"; 11]);
    assert_eq!((lines[11], scripted.told().calls), ("200", 0));

    // Once the attempt is over nobody answers at all.
    let late = "try: print(ask('GET', '/v1/models'))\nexcept OSError as e: print('closed')\nexcept http.client.HTTPException: print('closed')";
    let spec = RunSpec {
        env: world.gateway.variables(),
        ..RunSpec::new(["python3".to_owned(), "-c".to_owned(), format!("{PRELUDE}{late}")])
    };
    let mut running = world.sandbox.run(spec).await.unwrap();
    let mut text = Vec::new();
    while let Some(output) = running.next().await {
        if let Output::Stdout(data) | Output::Stderr(data) = output {
            text.extend_from_slice(&data);
        }
    }
    assert_eq!(String::from_utf8_lossy(&text).trim(), "closed");
}

async fn the_token_of_a_process_from_before_is_given_up_unless_it_called(subject: &Subject) {
    let (scripted, providers) = scripted(&[]);
    let world = World::new(subject, &["scripted/demo"], providers).await;
    let before = [("BEFORE", "of-before")];
    let look = r#"
before = {"x-api-key": os.environ["BEFORE"]}
print(ask("GET", "/v1/models", headers=before)[0])
"#;
    let call = r#"
print(ask("POST", "/v1/messages", say("demo"), headers={"x-api-key": os.environ["BEFORE"]})[0])
print(ask("POST", "/v1/messages", say("demo"))[0])
"#;
    world.gateway.bind("of-before");
    assert_eq!(world.run_with(look, &before).await, "200");
    assert!(world.gateway.unbind(), "it only looked");
    assert_eq!(world.run_with(call, &before).await, "401\n200");
    assert_eq!(scripted.told().calls, 1);

    world.gateway.bind("of-before");
    assert_eq!(world.run_with(call, &before).await, "200\n200");
    assert!(!world.gateway.unbind());
    assert_eq!(world.run_with(call, &before).await, "200\n200");
    assert_eq!((scripted.told().calls, world.calls().len()), (5, 5));
}

async fn the_provider_gets_the_key_and_the_same_bytes(subject: &Subject) {
    let server = ModelServer::demo().await;
    let settings = model::Settings {
        anthropic: server.settings(),
        ..model::Settings::default()
    };
    let world = World::new(subject, &["anthropic/claude-x"], settings.providers().unwrap()).await;
    let odd = "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":7,\
               \"output_tokens\":1}}}\r\n\r\n: a comment\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\
               \"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\nevent: new_kind\nid: 5\ndata: {\"type\":\"new_kind\",\ndata: \
               \"x\":1}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\
               \"usage\":{\"output_tokens\":11,\"cache_read_input_tokens\":5}}\n\ndata: {\"type\":\"message_stop\"}\n\n";
    server.then(Canned::stream(vec![Frame::Event(odd.to_owned())]));
    server.then(Canned::whole(
        401,
        &[],
        &json!({"type": "error", "error": {"type": "authentication_error", "message": format!("bad key {KEY}")}})
            .to_string(),
    ));
    let script = r#"
body = say("anthropic/claude-x", stream=True, new_setting={"a": [1.50, "\u20ac"]})
r = start("POST", "/v1/messages?beta=true", body, {"anthropic-beta": "some-beta", "anthropic-version": "2024-01-01", "cookie": "c", "x-other": "o"})
print(json.dumps([r.status, r.headers["content-type"], r.read().decode()]))
r = start("POST", "/v1/messages", say("claude-x"))
print(json.dumps([r.status, str(r.headers), r.read().decode()]))
"#;
    let printed = world.run(script).await;
    let answers: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers[0], json!([200, "text/event-stream; charset=utf-8", odd]));
    assert_eq!(answers[1][0], 502);
    assert!(!printed.contains(KEY), "{printed}");

    let requests = server.requests();
    let (headers, body) = &requests[0];
    assert_eq!(headers["x-api-key"], KEY);
    assert_eq!(
        (&headers["anthropic-beta"], &headers["anthropic-version"]),
        (&"some-beta".parse().unwrap(), &"2024-01-01".parse().unwrap())
    );
    let all = format!("{headers:?}");
    assert!(
        !all.contains(world.gateway.token()) && !all.contains("cookie") && !all.contains("x-other"),
        "{all}"
    );
    let expected = json!({"model": "claude-x", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}],
        "stream": true, "new_setting": {"a": [1.5, "€"]}});
    assert_eq!(*body, expected);
    let usage = world.gateway.usage();
    assert_eq!(
        (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens),
        (12, 5, 11)
    );
}

async fn a_provider_that_repeats_its_key_is_not_repeated(subject: &Subject) {
    let server = ModelServer::demo().await;
    let settings = model::Settings {
        anthropic: server.settings(),
        ..model::Settings::default()
    };
    let world = World::new(subject, &["anthropic/claude-x"], settings.providers().unwrap()).await;
    // In the middle of an answer, and cut in two by the server.
    let (one, other) = KEY.split_at(7);
    let begun = "data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"hm\"}}\n\n";
    let error =
        |key: &str| format!("data: {{\"type\":\"error\",\"error\":{{\"type\":\"api_error\",\"message\":\"{key}");
    let frames = [begun.to_owned(), error(one), format!("{other}\"}}}}\n\n")];
    server.then(Canned::stream(frames.map(Frame::Event).to_vec()));
    server.then(Canned::stream(vec![
        Frame::Event(begun.to_owned()),
        Frame::Event(format!("data: {KEY}\n\n")),
    ]));
    for (status, kind) in [
        (400, "invalid_request_error"),
        (402, "billing_error"),
        (404, "not_found_error"),
    ] {
        let words = json!({"type": "error", "error": {"type": kind, "message": format!("bad key {KEY}")}});
        server.then(Canned::whole(status, &[("request-id", KEY)], &words.to_string()));
    }
    let script = r#"
for n in range(5):
    r = start("POST", "/v1/messages", say("claude-x", stream=n < 2))
    try: text = r.read()
    except http.client.IncompleteRead as e: text = e.partial
    print(json.dumps([r.status, str(r.headers), text.decode()]))
"#;
    let printed = world.run(script).await;
    assert!(!printed.contains(KEY), "{printed}");
    let answers: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let statuses: Vec<&Value> = answers.iter().map(|answer| &answer[0]).collect();
    assert_eq!(statuses, [200, 200, 400, 402, 404]);
    for answer in &answers {
        assert!(answer[2].as_str().unwrap().contains("[key]"), "{answer}");
    }
    assert!(!world.details().contains(KEY));
}

async fn the_next_model_is_asked_before_the_first_token_and_not_after(subject: &Subject) {
    let overloaded = json!({"error": {"status": 529, "kind": "overloaded_error", "message": "busy"}});
    let (scripted, providers) = scripted(&[
        ("busy", json!({"rules": [{"reply": [overloaded]}]})),
        (
            "cut",
            json!({"rules": [{"reply": [{"text": "so far so good"}, "cut"]}]}),
        ),
        (
            "wrong",
            json!({"rules": [{"reply": [{"error": {"status": 400, "kind": "invalid_request_error", "message": "no"}}]}]}),
        ),
    ]);
    let models = ["scripted/busy", "scripted/wrong", "scripted/cut", "scripted/demo"];
    let world = World::new(subject, &models, providers).await;
    let script = r#"
print(refusal("POST", "/v1/messages", say("wrong")))
for path in "/v1/messages", "/v1/chat/completions":
    r = start("POST", path, say("cut", stream=True))
    try: r.read(); print("whole")
    except http.client.IncompleteRead as e: print(r.status, "so far" in e.partial.decode())
print(refusal("POST", "/v1/messages", say("busy")))
"#;
    let printed = world.run(script).await;
    // The one after `busy` finds the request itself at fault, and nobody else is asked.
    let expected = "400 invalid_request_error\n200 True\n200 True\n400 invalid_request_error";
    assert_eq!(printed, expected);
    let told = world.details();
    assert!(
        told.contains("trying again in") && told.contains("asking scripted/wrong instead"),
        "{told}"
    );
    let calls = world.calls();
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(
        calls
            .iter()
            .all(|usage| usage["estimated"] == true && usage["output_tokens"].as_u64() > Some(1))
    );
    drop(scripted);

    let (_, providers) = self::scripted(&[(
        "busy",
        json!({"rules": [{"reply": [{"error": {"status": 529, "kind": "overloaded_error"}}]}]}),
    )]);
    let world = World::new(subject, &["scripted/busy", "scripted/demo"], providers).await;
    assert_eq!(
        world
            .run("print(ask('POST', '/v1/messages', say('busy', stream=True))[0])")
            .await,
        "200"
    );
}

async fn a_program_that_goes_away_has_used_what_it_has_used(subject: &Subject) {
    let server = ModelServer::demo().await;
    let settings = model::Settings {
        anthropic: server.settings(),
        ..model::Settings::default()
    };
    let world = World::new(subject, &["anthropic/slow"], settings.providers().unwrap()).await;
    let script = "r = start('POST', '/v1/messages', say('slow', 'x' * 4000, stream=True))\nprint(len(r.read(600)))";
    assert_eq!(world.run(script).await, "600");
    crate::docker::eventually("the call to be given up", async || server.abandoned() == 1).await;
    let usage = world.gateway.usage();
    assert!(
        usage.estimated && usage.input_tokens > 900 && usage.output_tokens > 0,
        "{usage:?}"
    );
}

/// The client libraries, fetched once and kept beside the tests' own build.
fn python_packages() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-anthropic-openai-1");
    if !folder.is_dir() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let site = fresh.path().join("site");
        let fixed = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--only-binary=:all:",
            "--implementation=cp",
        ];
        let status = Command::new("python3")
            .args(fixed)
            .args(["--python-version=3.11", "--platform=manylinux2014_x86_64", "--target"])
            .arg(&site)
            .args(["anthropic", "openai"])
            .status()
            .unwrap();
        assert!(status.success(), "pip does not fetch the client libraries");
        // Whoever was quicker has the same.
        drop(std::fs::rename(&site, &folder));
    }
    folder
}

fn archive(folder: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("site", folder).unwrap();
    tar.into_inner().unwrap()
}

/// What a person would write: nothing in it knows of a gateway.
const CLIENTS: &str = r#"
import anthropic, openai
a, o = anthropic.Anthropic(), openai.OpenAI()
def report(name, value): print(name, value)
message = {"role": "user", "content": "hello there"}
tool = {"name": "bash", "description": "runs", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}
m = a.messages.create(model="demo", max_tokens=100, messages=[message])
report("create", m.content[0].text.startswith("You said") and m.usage.output_tokens > 0)
with a.messages.stream(model="demo", max_tokens=100, messages=[message]) as s:
    text = "".join(s.text_stream); final = s.get_final_message()
report("stream", text == final.content[0].text and final.stop_reason == "end_turn")
report("count", a.messages.count_tokens(model="demo", messages=[message]).input_tokens > 0)
m = a.messages.create(model="demo", max_tokens=100, tools=[tool], messages=[{"role": "user", "content": "run: ls"}])
call = m.content[-1]
m2 = a.messages.create(model="demo", max_tokens=100, tools=[tool], messages=[{"role": "user", "content": "run: ls"}, {"role": "assistant", "content": m.content},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "a file"}]}])
report("tools", (call.name, call.input["command"], "a file" in m2.content[0].text))
report("models", [x.id for x in a.models.list()] == [x.id for x in o.models.list()] == ["demo"])
c = o.chat.completions.create(model="demo", messages=[message])
report("chat", c.choices[0].message.content.startswith("You said") and c.usage.completion_tokens > 0)
pieces = [x.choices[0].delta.content or "" for x in o.chat.completions.create(model="demo", messages=[message], stream=True)]
report("chat stream", "".join(pieces) == c.choices[0].message.content)
last = list(o.chat.completions.create(model="demo", messages=[message], stream=True, stream_options={"include_usage": True}))[-1]
report("chat usage", last.usage.prompt_tokens > 0)
f = [{"type": "function", "function": {"name": "bash", "parameters": tool["input_schema"]}}]
c = o.chat.completions.create(model="demo", tools=f, messages=[{"role": "user", "content": "run: ls"}])
report("chat tools", c.choices[0].message.tool_calls[0].function.name)
def fails(do):
    try: return do()
    except (anthropic.APIStatusError, openai.APIStatusError) as e: return type(e).__name__, e.status_code
report("no model", fails(lambda: a.messages.create(model="other", max_tokens=1, messages=[message])))
report("beyond", fails(lambda: a.messages.create(model="demo", max_tokens=1, messages=[message], tools=[{"type": "web_search_20250305", "name": "web_search"}])))
report("no model", fails(lambda: o.chat.completions.create(model="other", messages=[message])))
report("no token", fails(lambda: openai.OpenAI(api_key="sk-x").chat.completions.create(model="demo", messages=[message])))
report("embedding", fails(lambda: o.embeddings.create(model="demo", input="x")))
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_libraries_of_both_wires_work_unchanged() {
    let mut subject = crate::docker::subject().await;
    subject.profile = worker::driver::Profile::default();
    let (scripted, providers) = scripted(&[]);
    let world = World::new(&subject, &["scripted/demo"], providers).await;
    let packages = tokio::task::spawn_blocking(|| archive(&python_packages()))
        .await
        .unwrap();
    world.sandbox.put_files(packages, PutFiles::default()).await.unwrap();
    let printed = world
        .run_with(CLIENTS, &[("PYTHONPATH", "/workspace/site"), ("HOME", "/workspace")])
        .await;
    let expected = "create True\nstream True\ncount True\ntools ('bash', 'ls', True)\nmodels True\nchat True\nchat stream True\n\
                    chat usage True\nchat tools bash\nno model ('NotFoundError', 404)\nbeyond ('PermissionDeniedError', 403)\n\
                    no model ('NotFoundError', 404)\nno token ('AuthenticationError', 401)\nembedding ('NotFoundError', 404)";
    assert_eq!(printed, expected);
    let told = scripted.told();
    assert_eq!((told.calls, told.usage), (8, world.gateway.usage()));
    assert_ne!(told.usage, Usage::default());
    drop(world);
    subject.has_nothing_left().await;
}
