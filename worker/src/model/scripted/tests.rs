//! The scripted provider, asked as a turn asks it.

use assert_matches::assert_matches;
use chrono::DateTime;
use common::message::{Message, Part, Role};
use serde_json::json;

use super::*;
use crate::model::answer::Finished;
use crate::model::{Answer, ModelEvent, StopReason, ToolDefinition};

fn request(messages: Vec<Message>) -> ModelRequest {
    let tool = |name: &str| ToolDefinition {
        name: name.to_owned(),
        description: String::new(),
        input_schema: json!({"type": "object"}),
    };
    ModelRequest {
        system: String::new(),
        messages,
        tools: vec![tool("bash"), tool("python")],
        max_output_tokens: 1_000,
        temperature: None,
        ..ModelRequest::of(Vec::new(), 0)
    }
}

fn user(text: &str) -> Message {
    Message::user(text, DateTime::UNIX_EPOCH)
}

async fn events(scripted: &Scripted, model: &str, request: &ModelRequest) -> Vec<Result<ModelEvent, Error>> {
    scripted.stream(model, request).await.unwrap().collect().await
}

async fn answer(scripted: &Scripted, model: &str, request: &ModelRequest) -> Finished {
    let mut answer = Answer::new("scripted");
    for event in events(scripted, model, request).await {
        answer.push(event.unwrap());
    }
    answer.finish()
}

fn script(json: serde_json::Value) -> Script {
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn the_demo_runs_the_code_of_a_message_and_reports_what_came_out() {
    let scripted = Scripted::built_in();
    let mut messages = vec![user("please run: echo hello\nrun: echo hello")];
    let first = answer(&scripted, "demo", &request(messages.clone())).await;
    assert_eq!(first.stop_reason, Some(StopReason::ToolUse));
    let call = first.parts.last().unwrap().clone();
    assert_matches!(&call, Part::ToolCall { name, input, .. } if name == "bash" && *input == json!({"command": "echo hello"}));
    let Part::ToolCall { id, .. } = call else {
        unreachable!()
    };

    messages.push(Message::new(Role::Assistant, first.parts, DateTime::UNIX_EPOCH));
    let result = Part::ToolResult {
        tool_call_id: id,
        is_error: false,
        output: "hello\n".to_owned(),
    };
    messages.push(Message::new(Role::User, vec![result], DateTime::UNIX_EPOCH));
    let second = answer(&scripted, "demo", &request(messages)).await;
    assert_eq!(second.stop_reason, Some(StopReason::EndTurn));
    let said = second.parts[0].as_text().unwrap();
    assert!(said.contains("```\nhello\n```") && said.contains("scripted"), "{said}");
}

#[tokio::test]
async fn the_same_question_gets_the_same_answer_in_small_pieces() {
    let scripted = Scripted::built_in();
    let request = request(vec![user("héllo wörld")]);
    let (one, two) = (
        events(&scripted, "demo", &request).await,
        events(&scripted, "demo", &request).await,
    );
    assert_eq!(format!("{one:?}"), format!("{two:?}"));
    let pieces: Vec<&str> = one
        .iter()
        .filter_map(|event| match event {
            Ok(ModelEvent::TextDelta { text }) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert!(
        pieces.len() > 10 && pieces.iter().all(|piece| piece.chars().count() <= 8),
        "{pieces:?}"
    );
    assert!(pieces.concat().contains("héllo wörld"));
}

#[tokio::test]
async fn the_first_rule_that_fits_is_played() {
    let scripted = Scripted::built_in().with(
        "weather",
        script(json!({"rules": [
            {"when": {"user_contains": "weather", "step": 0}, "reply": [{"tool_call": {"name": "bash", "input": {}}}]},
            {"when": {"user_contains": "weather", "output_contains": "rain"}, "reply": [{"text": "wet: {{output}}"}]},
            {"when": {"user_contains": "weather"}, "reply": [{"text": "dry"}]},
            {"reply": [{"reasoning": "?"}, {"text": "no idea of {{user}}"}, {"stop": "refusal"}]},
        ]})),
    );
    let mut messages = vec![user("the weather?")];
    assert_matches!(
        answer(&scripted, "weather", &request(messages.clone())).await.parts[..],
        [Part::ToolCall { .. }]
    );
    let result = |output: &str| Part::ToolResult {
        tool_call_id: "x".to_owned(),
        is_error: false,
        output: output.to_owned(),
    };
    messages.push(Message::new(
        Role::User,
        vec![result("rain today")],
        DateTime::UNIX_EPOCH,
    ));
    assert_eq!(
        answer(&scripted, "weather", &request(messages.clone())).await.parts,
        [Part::text("wet: rain today")]
    );
    messages.push(user("the news?"));
    let last = answer(&scripted, "weather", &request(messages)).await;
    assert_eq!(last.parts[1], Part::text("no idea of the news?"));
    assert_eq!(last.stop_reason, Some(StopReason::Refusal));
}

#[tokio::test]
async fn errors_come_before_or_in_the_middle_as_the_script_says() {
    let scripted = Scripted::built_in()
        .with("before", script(json!({"rules": [{"reply": [{"error": {"status": 429, "kind": "rate_limit_error", "retry_after": "3s"}}]}]})))
        .with("middle", script(json!({"rules": [{"reply": [{"text": "some"}, {"error": {"status": 529, "kind": "overloaded_error"}}]}]})))
        .with("cut", script(json!({"rules": [{"reply": [{"text": "some"}, "cut"]}]})));
    let request = request(vec![user("hi")]);
    let before = scripted.stream("before", &request).await.err().unwrap();
    assert_eq!(before.retry_after(), Some(Duration::from_secs(3)));
    assert_matches!(
        events(&scripted, "middle", &request).await.last(),
        Some(Err(Error::Refused(_)))
    );
    assert_matches!(
        events(&scripted, "cut", &request).await.last(),
        Some(Err(Error::Cut(None)))
    );
}

#[tokio::test]
async fn a_script_that_does_not_exist_is_named_with_those_that_do() {
    let error = Scripted::built_in()
        .stream("nope", &request(vec![user("hi")]))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains("\"nope\"; there are: demo, slow"), "{error}");
}

#[test]
fn scripts_are_read_from_a_folder_and_a_wrong_one_is_named() {
    let folder = std::env::temp_dir().join(format!("hothouse-scripts-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("mine.json"),
        r#"{"rules": [{"reply": [{"text": "mine"}]}]}"#,
    )
    .unwrap();
    std::fs::write(folder.join("notes.txt"), "not a script").unwrap();
    let mut scripted = Scripted::built_in();
    scripted.load(&folder).unwrap();
    assert!(!scripted.play("mine", &request(vec![user("hi")])).is_empty());
    std::fs::write(folder.join("wrong.json"), r#"{"rulez": []}"#).unwrap();
    let error = scripted.load(&folder).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(error.contains("wrong.json") && error.contains("rulez"), "{error}");
}
