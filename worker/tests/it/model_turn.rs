//! A native turn over HTTP: the tool loop, the real client, a server, and tools that run real programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assert_matches::assert_matches;
use chrono::DateTime;
use common::clock::Clock;
use common::job::event::EventBody;
use common::message::{Message, Part};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use worker::executor::chat;
use worker::executor::native::{
    Context, EventSink, Limits, NoJournal, Resume, Stop, ToolCall, ToolInput, ToolOutcome, Tools, ToolsLost, Turn,
    TurnEnd, TurnSink, run, tool,
};
use worker::model::{Caller, Providers, RetryPolicy, Settings, ToolDefinition};

use crate::model_server::{Canned, ModelServer};

/// Runs bash and python on this machine, without a sandbox: it is the loop that is tried here.
struct Host;

impl Tools for Host {
    fn definitions(&self) -> Vec<ToolDefinition> {
        tool::definitions(["bash", "python"]).unwrap()
    }

    fn call<'a>(&'a self, call: &'a ToolCall, sink: &'a dyn TurnSink) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>> {
        async move {
            let (program, code) = match ToolInput::parse(call) {
                Ok(ToolInput::Bash { command, .. }) => ("bash", command),
                Ok(ToolInput::Python { code, .. }) => ("python3", code),
                other => return Ok(ToolOutcome::error(format!("{other:?}"))),
            };
            let mut command = tokio::process::Command::new(program);
            let output = command.arg("-c").arg(code).kill_on_drop(true).output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            sink.tool_output(&call.id, &text);
            Ok(ToolOutcome {
                output: text,
                is_error: !output.status.success(),
            })
        }
        .boxed()
    }
}

struct Bench {
    server: ModelServer,
    providers: Providers,
    events: Arc<Mutex<Vec<EventBody>>>,
    cancel: CancellationToken,
}

impl Bench {
    async fn new() -> Self {
        let server = ModelServer::demo().await;
        let settings = Settings {
            anthropic: server.settings(),
            ..Settings::default()
        };
        let providers = settings.providers().unwrap();
        Self {
            server,
            providers,
            events: Arc::default(),
            cancel: CancellationToken::new(),
        }
    }

    async fn take(&self, harness: &str, history: Vec<Message>) -> TurnEnd {
        let turn = Turn {
            system: String::new(),
            history,
            models: vec!["anthropic/demo".parse().unwrap()],
            job_id: None,
            temperature: None,
            limits: Limits::default(),
            asks: HashMap::new(),
            attachments: BTreeMap::new(),
            resume: Resume::default(),
        };
        let sink = EventSink::new(|body| self.events.lock().unwrap().push(body));
        let retry = RetryPolicy {
            backoff_initial: Duration::from_millis(1),
            ..RetryPolicy::default()
        };
        let clock = Clock::system();
        let caller = Caller::alone(self.providers.clone(), retry, clock.clone()).unwrap();
        let context = Context {
            caller: &caller,
            clock: &clock,
            sink: &sink,
            journal: &NoJournal,
            cancel: &self.cancel,
        };
        match harness {
            "chat" => chat::run(turn, context).await,
            _ => run(turn, context, &Host).await,
        }
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = self.events.lock().unwrap().iter().map(EventBody::name).collect();
        names.dedup();
        names
    }
}

fn user(text: &str) -> Message {
    Message::user(text, DateTime::UNIX_EPOCH)
}

#[tokio::test]
async fn a_turn_runs_real_code_and_answers_with_what_it_printed() {
    let bench = Bench::new().await;
    let end = bench
        .take(
            "native",
            vec![user("```python\nprint(6 * 7)\n```\n```bash\nexit 3\n```")],
        )
        .await;
    assert_matches!(end.stop, Stop::Answered(_));
    assert!(
        end.text.contains("It printed:\n\n```\n42\n```") && end.text.contains("It failed:"),
        "{}",
        end.text
    );
    assert_eq!((end.messages.len(), end.steps), (3, 2));
    assert_eq!(
        bench.names(),
        [
            "reasoning.delta",
            "message.delta",
            "usage",
            "message",
            "tool.started",
            "tool.output",
            "tool.finished",
            "tool.output",
            "tool.finished",
            "message",
            "message.delta",
            "usage",
            "message",
        ]
    );
    assert_eq!(end.usage, bench.server.reported());
}

#[tokio::test]
async fn an_overloaded_server_is_asked_again_and_nothing_is_said_twice() {
    let bench = Bench::new().await;
    let body = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    bench.server.then(Canned::whole(529, &[], body));
    bench.server.then(Canned::whole(429, &[("retry-after-ms", "5")], body));
    let end = bench.take("native", vec![user("hello")]).await;
    assert_matches!(end.stop, Stop::Answered(_));
    assert_eq!(bench.server.requests().len(), 3);
    let events = bench.events.lock().unwrap().clone();
    let streamed: String = events
        .iter()
        .filter_map(|event| match event {
            EventBody::MessageDelta { text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(streamed, end.text);
    let retries = events
        .iter()
        .filter(|event| matches!(event, EventBody::Status { phase, .. } if phase == "model"));
    assert_eq!(retries.count(), 2);
}

#[tokio::test]
async fn a_long_wait_is_not_slept_through_but_handed_back() {
    let bench = Bench::new().await;
    bench.server.then(Canned::whole(
        429,
        &[("retry-after", "120")],
        "{\"error\":{\"type\":\"rate_limit_error\"}}",
    ));
    let end = bench.take("native", vec![user("hello")]).await;
    assert_matches!(&end.stop, Stop::Model(_));
    assert_eq!(end.stop.retry_after(), Some(Duration::from_mins(2)));
    assert_eq!(end.messages, []);
}

#[tokio::test]
async fn a_turn_cancelled_in_a_running_tool_ends_at_once_and_the_next_turn_goes_on() {
    let bench = Bench::new().await;
    let asked = vec![user("run: sleep 3600")];
    let started = async {
        while !bench.names().contains(&"tool.started") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.cancel.cancel();
    };
    let both = async { tokio::join!(bench.take("native", asked.clone()), started) };
    let (end, ()) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .expect("a cancel ends the turn");
    assert_matches!(end.stop, Stop::Cancelled);
    assert_matches!(&end.messages[1].parts[..], [Part::ToolResult { is_error: true, .. }]);

    let next = Bench::new().await;
    let history = [asked, end.messages, vec![user("never mind")]].concat();
    let end = next.take("native", history).await;
    assert_matches!(end.stop, Stop::Answered(_), "the server takes the history");
    assert!(end.text.contains("never mind"), "{}", end.text);
}

#[tokio::test]
async fn a_chat_has_no_tools_and_says_so() {
    let bench = Bench::new().await;
    let end = bench.take("chat", vec![user("run: ls")]).await;
    assert_matches!(end.stop, Stop::Answered(_));
    assert!(end.text.contains("no bash tool"), "{}", end.text);
    assert_eq!(bench.server.requests()[0].1.get("tools"), None);
}
