//! Tests of [`super::repair`]: an oracle of its own for "valid", and histories of every odd shape.

use chrono::TimeDelta;
use proptest::prelude::*;

use super::*;

fn call(id: &str) -> Part {
    Part::ToolCall {
        id: id.to_owned(),
        name: "bash".to_owned(),
        input: json!({"command": "ls"}),
    }
}

fn result(id: &str, output: &str) -> Part {
    Part::ToolResult {
        tool_call_id: id.to_owned(),
        is_error: false,
        output: output.to_owned(),
    }
}

fn reasoning(text: &str) -> Part {
    Part::Reasoning {
        text: text.to_owned(),
        signature: Some("s".to_owned()),
        redacted: None,
        provider: None,
    }
}

/// Messages with distinct ids and times, so that "unchanged" means unchanged in everything.
fn history(messages: Vec<(Role, Vec<Part>)>) -> Vec<Message> {
    (1_u32..)
        .zip(messages)
        .map(|(n, (role, parts))| Message {
            id: MessageId(Uuid::from_u128(n.into())),
            role,
            parts,
            job_id: None,
            usage: None,
            created_at: DateTime::UNIX_EPOCH + TimeDelta::seconds(n.into()),
        })
        .collect()
}

fn shape(messages: &[Message]) -> Vec<(Role, Vec<Part>)> {
    messages
        .iter()
        .map(|message| (message.role, message.parts.clone()))
        .collect()
}

/// Why a history is not valid for the next call; the rules of both wires, written apart from the code under test.
fn faults(messages: &[Message]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut ids = HashSet::new();
    for (n, message) in messages.iter().enumerate() {
        let expected = if n % 2 == 0 { Role::User } else { Role::Assistant };
        if message.role != expected || message.parts.is_empty() {
            faults.push(format!("message {n} is empty or out of turn"));
        }
        if matches!(message.parts.last(), Some(Part::Reasoning { .. })) {
            faults.push(format!("message {n} ends in reasoning"));
        }
        let mut calls = Vec::new();
        for part in &message.parts {
            match part {
                Part::Text { text } if text.trim().is_empty() => faults.push(format!("blank text in {n}")),
                Part::Status { .. } => faults.push(format!("a status in {n}")),
                Part::ToolCall { id, input, .. } => {
                    let odd = id.is_empty()
                        || id.len() > 64
                        || !id
                            .chars()
                            .all(|c| matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-'));
                    if odd || !ids.insert(id.clone()) || !input.is_object() || message.role == Role::User {
                        faults.push(format!("bad call {id:?} in {n}"));
                    }
                    calls.push(id.clone());
                }
                _ => {}
            }
        }
        let answered: Vec<String> = messages.get(n + 1).map_or_else(Vec::new, |next| {
            let leading = next.parts.iter().map_while(|part| match part {
                Part::ToolResult { tool_call_id, .. } => Some(tool_call_id.clone()),
                _ => None,
            });
            leading.collect()
        });
        if calls != answered {
            faults.push(format!("calls {calls:?} of {n} are answered by {answered:?}"));
        }
        let results = message
            .parts
            .iter()
            .filter(|part| matches!(part, Part::ToolResult { .. }))
            .count();
        let leading = message
            .parts
            .iter()
            .take_while(|part| matches!(part, Part::ToolResult { .. }))
            .count();
        if results != leading || (n == 0 && results > 0) || (message.role == Role::Assistant && results > 0) {
            faults.push(format!("a stray result in {n}"));
        }
    }
    faults
}

fn any_part() -> impl Strategy<Value = Part> {
    // Few ids, so that they collide, are answered twice, out of order, or never.
    let id = prop_oneof![Just("a"), Just("b"), Just(""), Just("c d\u{e9}")];
    prop_oneof![
        "[a-z \\n]{0,4}".prop_map(Part::text),
        Just(reasoning("hm")),
        (id.clone(), any::<bool>()).prop_map(|(id, odd)| match call(id) {
            Part::ToolCall { id, name, .. } if odd => Part::ToolCall {
                id,
                name,
                input: json!("{\"broken")
            },
            part => part,
        }),
        (id, "[a-z]{0,3}").prop_map(|(id, output)| result(id, &output)),
        Just(Part::Status {
            text: "cancelled".to_owned()
        }),
        Just(Part::File {
            path: "a.txt".to_owned(),
            media_type: None,
            bytes: None
        }),
    ]
}

fn any_history() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![Just(Role::User), Just(Role::Assistant)];
    let message = (role, proptest::collection::vec(any_part(), 0..5));
    proptest::collection::vec(message, 0..8).prop_map(history)
}

/// A history as our own loop writes it.
fn valid_history() -> impl Strategy<Value = Vec<Message>> {
    let turn = ("[a-z]{1,5}", proptest::collection::vec(1_usize..4, 0..3), any::<bool>());
    proptest::collection::vec(turn, 0..4).prop_map(|turns| {
        let mut messages = Vec::new();
        let mut n = 0;
        for (text, steps, steered) in turns {
            messages.push((Role::User, vec![Part::text(text)]));
            for calls in steps {
                let ids: Vec<String> = (n..n + calls).map(|n| format!("call-{n}")).collect();
                n += calls;
                let mut asked = vec![reasoning("hm"), Part::text("let me see")];
                asked.extend(ids.iter().map(|id| call(id)));
                messages.push((Role::Assistant, asked));
                let mut answered: Vec<Part> = ids.iter().map(|id| result(id, "ok")).collect();
                if steered {
                    answered.push(Part::text("and be quick"));
                }
                messages.push((Role::User, answered));
            }
            messages.push((Role::Assistant, vec![Part::text("done")]));
        }
        history(messages)
    })
}

fn user_texts(messages: &[Message]) -> Vec<String> {
    let of_users = messages.iter().filter(|message| message.role == Role::User);
    let texts = of_users.flat_map(|message| message.parts.iter().filter_map(Part::as_text));
    texts
        .filter(|text| !text.trim().is_empty() && *text != OPENING)
        .map(str::to_owned)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_history_becomes_valid(messages in any_history()) {
        let repaired = repair(messages);
        prop_assert_eq!(faults(&repaired), Vec::<String>::new(), "{:#?}", repaired);
    }

    #[test]
    fn repairing_twice_is_repairing_once(messages in any_history()) {
        let once = repair(messages);
        prop_assert_eq!(repair(once.clone()), once);
    }

    #[test]
    fn nothing_that_a_user_said_is_lost_or_moved(messages in any_history()) {
        let said = user_texts(&messages);
        prop_assert_eq!(user_texts(&repair(messages)), said);
    }

    #[test]
    fn a_valid_history_comes_back_unchanged(messages in valid_history()) {
        prop_assert_eq!(faults(&messages), Vec::<String>::new());
        prop_assert_eq!(repair(messages.clone()), messages);
    }

    #[test]
    fn a_turn_cut_at_any_part_is_valid_once_the_user_speaks_again(messages in valid_history(), cut in any::<prop::sample::Index>()) {
        let total: usize = messages.iter().map(|message| message.parts.len()).sum();
        let mut left = cut.index(total + 1);
        let mut cut_off = Vec::new();
        for mut message in messages {
            message.parts.truncate(left);
            left -= message.parts.len();
            cut_off.push(message);
        }
        cut_off.push(Message::user("go on", DateTime::UNIX_EPOCH));
        let repaired = repair(cut_off);
        prop_assert_eq!(faults(&repaired), Vec::<String>::new());
        prop_assert_eq!(repaired.last().map(|message| message.role), Some(Role::User));
    }
}

#[test]
fn a_call_whose_result_was_lost_is_answered_with_what_happened() {
    let repaired = repair(history(vec![
        (Role::User, vec![Part::text("go")]),
        (Role::Assistant, vec![call("a"), call("b")]),
        (Role::User, vec![result("b", "two"), Part::text("well?")]),
    ]));
    let missing = Part::ToolResult {
        tool_call_id: "a".to_owned(),
        is_error: true,
        output: MISSING_RESULT.to_owned(),
    };
    assert_eq!(
        shape(&repaired)[1..],
        [
            (Role::Assistant, vec![call("a"), call("b")]),
            (Role::User, vec![missing, result("b", "two"), Part::text("well?")]),
        ]
    );
}

#[test]
fn a_result_that_came_after_something_else_goes_back_to_its_call() {
    let repaired = repair(history(vec![
        (Role::User, vec![Part::text("go")]),
        (Role::Assistant, vec![call("a")]),
        (Role::User, vec![Part::text("hurry")]),
        (
            Role::User,
            vec![result("a", "one"), result("a", "again"), result("x", "stray")],
        ),
    ]));
    assert_eq!(
        shape(&repaired)[1..],
        [
            (Role::Assistant, vec![call("a")]),
            (Role::User, vec![result("a", "one"), Part::text("hurry")])
        ]
    );
}

#[test]
fn ids_that_a_server_used_twice_are_told_apart_with_their_results() {
    let repaired = repair(history(vec![
        (Role::User, vec![Part::text("go")]),
        (Role::Assistant, vec![call("0"), call("0")]),
        (Role::User, vec![result("0", "one"), result("0", "two")]),
        (Role::Assistant, vec![call("0")]),
        (Role::User, vec![result("0", "three")]),
    ]));
    assert_eq!(
        shape(&repaired)[1..],
        [
            (Role::Assistant, vec![call("0"), call("0-2")]),
            (Role::User, vec![result("0", "one"), result("0-2", "two")]),
            (Role::Assistant, vec![call("0-3")]),
            (Role::User, vec![result("0-3", "three")]),
        ]
    );
}

#[test]
fn one_message_that_calls_and_answers_itself_is_cut_into_the_turns_of_the_wire() {
    let parts = vec![Part::text("look"), call("a"), result("a", "one"), Part::text("so")];
    let repaired = repair(history(vec![
        (Role::User, vec![Part::text("go")]),
        (Role::Assistant, parts),
    ]));
    assert_eq!(
        shape(&repaired)[1..],
        [
            (Role::Assistant, vec![Part::text("look"), call("a")]),
            (Role::User, vec![result("a", "one")]),
            (Role::Assistant, vec![Part::text("so")]),
        ]
    );
}

#[test]
fn calls_and_reasoning_in_the_name_of_the_user_are_not_believed() {
    let repaired = repair(history(vec![(
        Role::User,
        vec![call("a"), reasoning("obey"), Part::text("hi")],
    )]));
    assert_eq!(shape(&repaired), [(Role::User, vec![Part::text("hi")])]);
}
