//! The tool loop against the scripted provider: what it does, and what is left when it is stopped anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use assert_matches::assert_matches;
use chrono::DateTime;
use common::message::{MISSING_RESULT, Part, repair};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::scripted::Scripted;
use crate::model::scripted::script::Script;
use crate::model::{Providers, RetryPolicy, ToolDefinition};

/// Keeps what it is told as lines, and cancels at the line that the test names.
#[derive(Default)]
struct Notes {
    lines: Mutex<Vec<String>>,
    count: AtomicUsize,
    cancel_at: Option<usize>,
    cancel: CancellationToken,
}

impl Notes {
    fn note(&self, line: String) {
        self.lines.lock().unwrap().push(line);
        if Some(self.count.fetch_add(1, Ordering::Relaxed)) == self.cancel_at {
            self.cancel.cancel();
        }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl TurnSink for Notes {
    fn text_delta(&self, text: &str) {
        self.note(format!("text {text:?}"));
    }
    fn reasoning_delta(&self, text: &str) {
        self.note(format!("reasoning {text:?}"));
    }
    fn tool_started(&self, call: &ToolCall) {
        self.note(format!("started {} {}", call.name, call.input));
    }
    fn tool_output(&self, _: &str, text: &str) {
        self.note(format!("output {text:?}"));
    }
    fn tool_finished(&self, _: &str, outcome: &ToolOutcome) {
        self.note(format!("finished {} {:?}", outcome.is_error, outcome.output));
    }
    fn usage(&self, call: &CallUsage) {
        self.note(format!(
            "usage {} {} {}",
            call.call, call.model, call.usage.output_tokens
        ));
    }
    fn message(&self, message: &Message) {
        self.note(format!("message {:?} {}", message.role, message.parts.len()));
    }
    fn status(&self, phase: &str, detail: Option<&str>) {
        self.note(format!("status {phase} {}", detail.unwrap_or_default()));
    }
}

/// A tool `say` that repeats its input, a tool `hang` that never ends, and a tool `lose` that loses the sandbox.
struct Parrot;

impl Tools for Parrot {
    fn definitions(&self) -> Vec<ToolDefinition> {
        let tool = |name: &str| ToolDefinition {
            name: name.to_owned(),
            description: String::new(),
            input_schema: json!({"type": "object"}),
        };
        ["say", "hang", "lose"].map(tool).to_vec()
    }

    fn call<'a>(&'a self, call: &'a ToolCall, sink: &'a dyn TurnSink) -> BoxFuture<'a, Result<ToolOutcome, ToolsLost>> {
        async move {
            match call.name.as_str() {
                "hang" => std::future::pending().await,
                "lose" => Err(ToolsLost("the pipe broke".into())),
                _ => {
                    sink.tool_output(&call.id, "…");
                    tokio::task::yield_now().await;
                    Ok(ToolOutcome::ok(call.input["text"].as_str().unwrap_or_default()))
                }
            }
        }
        .boxed()
    }
}

fn turn(text: &str) -> Turn {
    Turn {
        system: "be brief".to_owned(),
        history: vec![Message::user(text, DateTime::UNIX_EPOCH)],
        models: vec!["scripted/test".parse().unwrap()],
        job_id: None,
        temperature: None,
        limits: Limits {
            max_steps: 5,
            max_output_tokens: 100,
            tool_output_bytes_max: 80,
            ..Limits::default()
        },
        asks: HashMap::new(),
        attachments: BTreeMap::new(),
        resume: Resume::default(),
    }
}

async fn take(turn: Turn, rules: Value, notes: &Notes) -> TurnEnd {
    let script: Script = serde_json::from_value(json!({ "rules": rules })).unwrap();
    let scripted = Scripted::built_in().with("test", script);
    let providers = Providers::new([("scripted".to_owned(), Arc::new(scripted) as _)]);
    let retry = RetryPolicy {
        backoff_initial: Duration::ZERO,
        ..RetryPolicy::default()
    };
    let clock = Clock::from_fn(|| DateTime::UNIX_EPOCH);
    let caller = Caller::alone(providers, retry, clock.clone()).unwrap();
    let cancel = notes.cancel.clone();
    let context = Context {
        caller: &caller,
        clock: &clock,
        sink: notes,
        journal: &NoJournal,
        cancel: &cancel,
    };
    movable(run(turn, context, &Parrot)).await
}

/// A turn is run on whichever thread is free.
fn movable<F: Future + Send>(turn: F) -> F {
    turn
}

fn say(text: &str) -> Value {
    json!({"tool_call": {"name": "say", "input": {"text": text}}})
}

fn results(end: &TurnEnd) -> Vec<(bool, String)> {
    let parts = end.messages.iter().flat_map(|message| &message.parts);
    let results = parts.filter_map(|part| match part {
        Part::ToolResult { is_error, output, .. } => Some((*is_error, output.clone())),
        _ => None,
    });
    results.collect()
}

#[tokio::test]
async fn a_turn_runs_what_the_model_calls_and_ends_with_its_answer() {
    let notes = Notes::default();
    let rules = json!([
        {"when": {"step": 0}, "reply": [{"reasoning": "hm"}, {"text": "I look."}, say("one"), say("two")]},
        {"reply": [{"text": "It says {{output}}."}]},
    ]);
    let end = take(turn("look"), rules, &notes).await;
    assert_matches!(end.stop, Stop::Answered(StopReason::EndTurn));
    assert_eq!((end.text.as_str(), end.steps), ("It says one\ntwo.", 2));
    assert_eq!(results(&end), [(false, "one".to_owned()), (false, "two".to_owned())]);
    let roles: Vec<Role> = end.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::Assistant, Role::User, Role::Assistant]);
    assert_eq!(
        notes.lines(),
        [
            "reasoning \"hm\"",
            "text \"I look.\"",
            "usage 0 scripted/test 10",
            "message Assistant 4",
            "started say {\"text\":\"one\"}",
            "output \"…\"",
            "started say {\"text\":\"two\"}",
            "output \"…\"",
            "finished false \"one\"",
            "finished false \"two\"",
            "message User 2",
            "text \"It says \"",
            "text \"one\\ntwo.\"",
            "usage 1 scripted/test 4",
            "message Assistant 1",
        ]
    );
    let of_messages: u64 = end
        .messages
        .iter()
        .filter_map(|message| message.usage)
        .map(|usage| usage.output_tokens)
        .sum();
    assert_eq!((end.usage.output_tokens, of_messages), (14, 14));
}

#[tokio::test]
async fn what_cannot_be_called_is_told_to_the_model_which_goes_on() {
    let rules = json!([
        {"when": {"step": 0}, "reply": [
            {"tool_call": {"name": "telnet", "input": {}}},
            {"tool_call": {"name": "say", "input": "{\"text\": \"unfin"}},
            say(&"long ".repeat(40)),
        ]},
        {"reply": [{"text": "I see."}]},
    ]);
    let end = take(turn("go"), rules, &Notes::default()).await;
    assert_matches!(end.stop, Stop::Answered(_));
    let results = results(&end);
    assert_eq!(
        results[0],
        (
            true,
            "Not run: there is no tool \"telnet\". Tools: [say, hang, lose].".to_owned()
        )
    );
    assert!(results[1].0 && results[1].1.contains("not valid JSON"), "{results:?}");
    assert!(
        !results[2].0 && results[2].1.contains("[… 120 bytes left out …]"),
        "{results:?}"
    );
}

#[tokio::test]
async fn a_model_that_asks_to_wait_is_not_outdone_by_one_that_is_not_there() {
    let limited = json!({"error": {"status": 429, "kind": "rate_limit_error", "retry_after": "30s"}});
    let mut asked = turn("go");
    asked.models.push("nobody/x".parse().unwrap());
    let notes = Notes::default();
    let end = take(asked, json!([{"reply": [limited]}]), &notes).await;
    assert_eq!(end.stop.wait(), Some(Duration::from_secs(30)), "{end:?}");
    let told = notes.lines().join("\n");
    assert!(
        told.contains("asking nobody/x instead") && told.contains("is set up"),
        "{told}"
    );
}

#[tokio::test]
async fn an_answer_that_is_cut_at_its_most_tokens_says_so() {
    let rules = json!([
        {"when": {"step": 0}, "reply": [{"tool_call": {"name": "say", "input": "{\"text\": \"unfin"}}, {"stop": "max_tokens"}]},
        {"reply": [{"text": "Shorter th"}, {"stop": "max_tokens"}]},
    ]);
    let notes = Notes::default();
    let end = take(turn("go"), rules, &notes).await;
    assert_matches!(end.stop, Stop::Answered(StopReason::MaxTokens));
    let results = results(&end);
    assert!(results[0].0 && results[0].1.contains("say less at once"), "{results:?}");
    let told = "status model the answer is cut: it has 100 tokens, the most that it may have";
    assert_eq!(notes.lines().iter().filter(|line| *line == told).count(), 2);
}

#[tokio::test]
async fn a_model_that_never_stops_is_stopped_at_its_last_step() {
    let end = take(turn("go"), json!([{"reply": [say("again")]}]), &Notes::default()).await;
    assert_matches!(end.stop, Stop::MaxSteps);
    assert_eq!((end.steps, end.messages.len()), (5, 10));
    assert_eq!(
        results(&end)[4],
        (true, "Not run: the limit of 5 steps is reached.".to_owned())
    );
    assert_eq!(
        end.stop.failure().map(|failure| failure.code),
        Some(FailureCode::MaxSteps)
    );
}

#[tokio::test]
async fn a_lost_sandbox_ends_the_turn_and_every_call_says_so() {
    let rules = json!([{"reply": [say("one"), {"tool_call": {"name": "lose", "input": {}}}, say("three")]}]);
    let end = take(turn("go"), rules, &Notes::default()).await;
    assert_matches!(&end.stop, Stop::Tools(ToolsLost(source)) if source.to_string() == "the pipe broke");
    let said: Vec<bool> = results(&end).into_iter().map(|(is_error, _)| is_error).collect();
    assert_eq!(said, [false, true, false], "the others ran beside it");
    assert_eq!(
        end.stop.failure().map(|failure| failure.code),
        Some(FailureCode::SandboxFailed)
    );
}

#[tokio::test]
async fn a_refusal_is_tried_again_before_the_first_token_and_never_after_it() {
    let overloaded = json!({"error": {"status": 529, "kind": "overloaded_error", "message": "busy"}});
    let notes = Notes::default();
    let mut before = turn("go");
    before.models.push("scripted/demo".parse().unwrap());
    let end = take(before, json!([{"reply": [overloaded]}]), &notes).await;
    assert_matches!(end.stop, Stop::Answered(_), "the second model answers");
    let statuses: Vec<String> = notes
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("status"))
        .collect();
    assert_eq!(statuses.len(), 3, "{statuses:?}");
    assert!(
        statuses[0].contains("trying again") && statuses[2].contains("asking scripted/demo"),
        "{statuses:?}"
    );

    let notes = Notes::default();
    let mut after = turn("go");
    after.models.push("scripted/demo".parse().unwrap());
    let end = take(after, json!([{"reply": [{"text": "some"}, overloaded]}]), &notes).await;
    assert_matches!(&end.stop, Stop::Model(Error::Refused(_)));
    let note = Part::Status {
        text: "broken off".to_owned(),
    };
    assert_eq!(end.messages[0].parts, [Part::text("some"), note]);
    assert_eq!(
        notes.lines(),
        ["text \"some\"", "usage 0 scripted/test 1", "message Assistant 2"]
    );
    assert!(end.usage.input_tokens > 0);
}

#[tokio::test]
async fn a_cancelled_answer_keeps_what_was_seen_and_a_cancelled_tool_says_what_happened() {
    let notes = Notes {
        cancel_at: Some(0),
        ..Notes::default()
    };
    let end = take(turn("go"), json!([{"reply": [{"text": "some long answer"}]}]), &notes).await;
    assert_matches!(end.stop, Stop::Cancelled);
    assert_eq!(
        end.messages[0].parts,
        [
            Part::text("some lon"),
            Part::Status {
                text: "cancelled".to_owned()
            }
        ]
    );
    assert!(end.usage.estimated);

    let rules = json!([{"reply": [{"tool_call": {"name": "hang", "input": {}}}, say("two")]}]);
    let notes = Notes::default();
    let cancel = notes.cancel.clone();
    let started = async {
        while !notes.lines().iter().any(|line| line.starts_with("started")) {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (end, ()) = tokio::join!(take(turn("go"), rules, &notes), started);
    assert_matches!(end.stop, Stop::Cancelled);
    assert_eq!(
        results(&end),
        [
            (
                true,
                "No result: the turn was cancelled while this call ran.".to_owned()
            ),
            (false, "two".to_owned()),
        ]
    );
}

#[tokio::test]
async fn a_conversation_without_a_question_is_not_asked() {
    let mut turn = turn("go");
    turn.history.push(Message::new(
        Role::Assistant,
        vec![Part::text("done")],
        DateTime::UNIX_EPOCH,
    ));
    let end = take(turn, json!([]), &Notes::default()).await;
    assert_matches!(end.stop, Stop::Model(Error::NothingToAnswer));
}

#[tokio::test]
async fn what_a_lost_call_had_counted_before_its_first_token_is_metered_too() {
    let overloaded = json!({"error": {"status": 529, "kind": "overloaded_error"}});
    let notes = Notes::default();
    let mut asked = turn("go");
    asked.models.push("scripted/demo".parse().unwrap());
    // The wait makes the answer begin, with its input counted, before it fails without a word.
    let end = take(asked, json!([{"reply": [{"wait": "1ms"}, overloaded]}]), &notes).await;
    assert_matches!(end.stop, Stop::Answered(_));
    let usages: Vec<String> = notes
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("usage"))
        .collect();
    let expected = [
        "usage 0 scripted/test 1",
        "usage 1 scripted/test 1",
        "usage 2 scripted/test 1",
    ];
    assert_eq!(usages[..3], expected);
    assert!(usages[3].starts_with("usage 3 scripted/demo"), "{usages:?}");
    let last = end.messages[0].usage.unwrap();
    assert_eq!(end.usage.output_tokens, last.output_tokens + 3);
}

fn any_action() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => "[a-z ]{1,20}".prop_map(|text| json!({"text": text})),
        2 => "[a-z ]{1,20}".prop_map(|text| json!({"reasoning": text})),
        6 => "[a-z]{1,60}".prop_map(|text| say(&text)),
        2 => Just(json!({"tool_call": {"name": "say", "input": "{\"text"}})),
        1 => Just(json!({"tool_call": {"name": "telnet", "input": {}}})),
        1 => Just(json!({"tool_call": {"name": "lose", "input": {}}})),
        1 => Just(json!("cut")),
        1 => Just(json!({"error": {"status": 529, "kind": "overloaded_error"}})),
        1 => Just(json!({"stop": "max_tokens"})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn wherever_a_turn_stops_the_conversation_is_valid_for_the_next(
        replies in proptest::collection::vec(proptest::collection::vec(any_action(), 0..5), 1..6),
        cancel_at in proptest::option::of(0_usize..60),
    ) {
        let rules: Value = (0..).zip(replies).map(|(step, reply)| json!({"when": {"step": step}, "reply": reply})).collect();
        let notes = Notes { cancel_at, ..Notes::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let asked = turn("go");
        let history = asked.history.clone();
        let end = runtime.block_on(take(asked, rules, &notes));

        let mut conversation = history;
        conversation.extend(end.messages.clone());
        conversation.push(Message::user("next", DateTime::UNIX_EPOCH));
        let repaired = repair(conversation.clone());
        let calls = |messages: &[Message]| -> Vec<String> {
            messages.iter().flat_map(|message| message.tool_calls().map(|(id, _)| id.to_owned()).collect::<Vec<_>>()).collect()
        };
        let made = calls(&conversation);
        prop_assert_eq!(&calls(&repaired), &made, "no call was dropped or renamed");
        prop_assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), made.len());
        let answers: Vec<String> = repaired.iter().flat_map(|message| &message.parts).filter_map(|part| match part {
            Part::ToolResult { output, .. } => Some(output.clone()),
            _ => None,
        }).collect();
        prop_assert_eq!(answers.len(), made.len());
        prop_assert!(!answers.iter().any(|output| output == MISSING_RESULT), "every call has its own result");
        prop_assert_eq!(answers, results(&end).into_iter().map(|(_, output)| output).collect::<Vec<_>>());
        prop_assert!(end.messages.iter().all(|message| !message.parts.is_empty()));
    }
}
