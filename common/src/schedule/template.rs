//! Templates: what a fire puts into the strings of its job's input. Pure.
//!
//! `{{ name }}` in any string value of the input is replaced at each fire; keys, numbers and the other fields of a job
//! are left alone. The names are those of [`NAMES`], and `last_result` may go on with a path: `{{ last_result.stdout }}`,
//! `{{ last_result.items.0 }}`. A string is put in as it is, anything else as compact JSON, and what is absent as
//! nothing. `\{{ name }}` stays `{{ name }}`. Braces around anything but a name mean nothing here; a name that is none
//! of ours is refused when the schedule is saved, because it is a slip of the pen more often than not.

use serde_json::Value;

/// What may stand between the braces.
pub const NAMES: [&str; 6] = [
    "fire_at",
    "fire_at_local",
    "last_fire_at",
    "last_result",
    "schedule_id",
    "schedule_name",
];

const LAST_RESULT: &str = "last_result";

/// A template that cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the input, as a JSON pointer.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

/// What the names stand for at one fire.
#[derive(Clone, Debug)]
pub struct Values {
    /// The due time, RFC 3339, UTC.
    pub fire_at: String,
    /// The same on the wall of the schedule's zone.
    pub fire_at_local: String,
    /// The due time before it that made a job.
    pub last_fire_at: Option<String>,
    /// The result of the last job that succeeded.
    pub last_result: Option<Value>,
    /// The schedule's id.
    pub schedule_id: String,
    /// The schedule's name.
    pub schedule_name: String,
}

/// Whether a text may hold templates at all.
pub fn has_templates(json: &str) -> bool {
    json.contains("{{")
}

/// What is wrong with the templates of an input.
pub fn check(input: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    visit(input, &mut String::new(), &mut |pointer, text| {
        for piece in pieces(text) {
            if let Piece::Name(name) = piece
                && !is_known(name)
            {
                let detail = format!(
                    "{{{{ {name} }}}} is none of {}; write \\{{{{ {name} }}}} where it is to stay as it is",
                    NAMES.join(", ")
                );
                let pointer = pointer.to_owned();
                faults.push(Fault { pointer, detail });
            }
        }
    });
    faults
}

/// Whether an input asks for the last result.
pub fn names_last_result(input: &Value) -> bool {
    let mut found = false;
    visit(input, &mut String::new(), &mut |_, text| {
        found |= pieces(text)
            .iter()
            .any(|piece| matches!(piece, Piece::Name(name) if root(name) == LAST_RESULT));
    });
    found
}

/// Replaces every template of an input.
pub fn render(input: &mut Value, values: &Values) {
    match input {
        Value::String(text) if has_templates(text) => *text = rendered(text, values),
        Value::Array(items) => items.iter_mut().for_each(|item| render(item, values)),
        Value::Object(fields) => fields.values_mut().for_each(|value| render(value, values)),
        _ => {}
    }
}

/// Every string of a value, with its place.
fn visit(value: &Value, pointer: &mut String, see: &mut dyn FnMut(&str, &str)) {
    let length = pointer.len();
    match value {
        Value::String(text) => see(pointer, text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointer.push('/');
                pointer.push_str(&index.to_string());
                visit(item, pointer, see);
                pointer.truncate(length);
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                pointer.push('/');
                pointer.push_str(&crate::job::invalid::escape(name));
                visit(item, pointer, see);
                pointer.truncate(length);
            }
        }
        _ => {}
    }
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// As it is.
    Text(&'a str),
    /// To be replaced.
    Name(&'a str),
}

fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut rest, mut from) = (Vec::new(), text, 0);
    while let Some(at) = rest.get(from..).and_then(|ahead| ahead.find("{{")).map(|at| at + from) {
        let Some((name, length)) = rest.get(at..).and_then(placeholder) else {
            from = at + 1;
            continue;
        };
        let before = rest.get(..at).unwrap_or_default();
        let is_escaped = before.ends_with('\\');
        let end = at + length;
        if is_escaped {
            pieces.push(Piece::Text(before.get(..at - 1).unwrap_or_default()));
            pieces.push(Piece::Text(rest.get(at..end).unwrap_or_default()));
        } else {
            pieces.push(Piece::Text(before));
            pieces.push(Piece::Name(name));
        }
        rest = rest.get(end..).unwrap_or_default();
        from = 0;
    }
    pieces.push(Piece::Text(rest));
    pieces
}

/// A name between double braces at the begin of a text, and how long all of it is.
fn placeholder(text: &str) -> Option<(&str, usize)> {
    let inside = text.strip_prefix("{{")?;
    let close = inside.find("}}")?;
    let name = inside.get(..close)?.trim_matches(' ');
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .chars()
            .all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, '_' | '.' | '-'));
    is_name.then_some((name, close + 4))
}

fn root(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn is_known(name: &str) -> bool {
    NAMES.contains(&name) || (root(name) == LAST_RESULT && !name.ends_with('.'))
}

fn rendered(text: &str, values: &Values) -> String {
    let mut whole = String::with_capacity(text.len());
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => whole.push_str(text),
            Piece::Name(name) => match name {
                "fire_at" => whole.push_str(&values.fire_at),
                "fire_at_local" => whole.push_str(&values.fire_at_local),
                "last_fire_at" => whole.push_str(values.last_fire_at.as_deref().unwrap_or_default()),
                "schedule_id" => whole.push_str(&values.schedule_id),
                "schedule_name" => whole.push_str(&values.schedule_name),
                _ => whole.push_str(&of_result(name, values.last_result.as_ref())),
            },
        }
    }
    whole
}

fn of_result(name: &str, result: Option<&Value>) -> String {
    let mut found = result;
    for step in name.split('.').skip(1) {
        found = match found {
            Some(Value::Array(items)) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
            Some(Value::Object(fields)) => fields.get(step),
            _ => None,
        };
    }
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(last_result: Option<Value>) -> Values {
        Values {
            fire_at: "2026-11-21T12:00:00Z".to_owned(),
            fire_at_local: "2026-11-21T13:00:00+01:00".to_owned(),
            last_fire_at: None,
            last_result,
            schedule_id: "1".to_owned(),
            schedule_name: "a \"name\" {{ fire_at }}".to_owned(),
        }
    }

    #[rstest::rstest]
    #[case::plain("at {{ fire_at }}", "at 2026-11-21T12:00:00Z")]
    #[case::tight("{{fire_at_local}}!", "2026-11-21T13:00:00+01:00!")]
    #[case::absent("[{{ last_fire_at }}]", "[]")]
    #[case::what_is_put_in_is_not_read_again("{{ schedule_name }}", "a \"name\" {{ fire_at }}")]
    #[case::escaped("\\{{ fire_at }}", "{{ fire_at }}")]
    #[case::escaped_twice("\\\\{{ fire_at }}", "\\{{ fire_at }}")]
    #[case::other_braces("{{}} {{1}} {{ a b }} {{{ }} \\{{", "{{}} {{1}} {{ a b }} {{{ }} \\{{")]
    #[case::three_braces("{{{ fire_at }}}", "{2026-11-21T12:00:00Z}")]
    #[case::text("{{ last_result.stdout }}", "fine\n")]
    #[case::json("{{ last_result.items }}", "[1,{\"a\":null}]")]
    #[case::index("{{ last_result.items.0 }}", "1")]
    #[case::missing("<{{ last_result.items.9.x }}>", "<>")]
    #[case::unicode("é{{ schedule_id }}é", "é1é")]
    fn a_name_is_replaced_and_nothing_else(#[case] text: &str, #[case] expected: &str) {
        let result = json!({"stdout": "fine\n", "items": [1, {"a": null}]});
        let mut input = json!({"{{ fire_at }}": [text, 5]});
        render(&mut input, &values(Some(result)));
        assert_eq!(input, json!({"{{ fire_at }}": [expected, 5]}));
    }

    #[test]
    fn without_a_result_there_is_nothing() {
        let mut input = json!("<{{ last_result }}>");
        render(&mut input, &values(None));
        assert_eq!(input, json!("<>"));
    }

    #[test]
    fn an_unknown_name_is_refused_where_it_stands() {
        let input = json!({"a/b": ["{{ fire_at }}", "{{ fired_at }} \\{{ user }}"], "c": "{{ last_result. }}"});
        let faults = check(&input);
        let places: Vec<&str> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(places, ["/a~1b/1", "/c"]);
        assert!(faults[0].detail.contains("fired_at") && faults[0].detail.contains("schedule_name"));
        assert!(names_last_result(&json!(["{{ last_result.x }}"])));
        assert!(!names_last_result(&json!(["last_result", "\\{{ last_result }}"])));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}\\\\ a-zé_.0-9]{0,40}") {
            let mut input = Value::String(text);
            drop(check(&input));
            render(&mut input, &values(Some(json!({"a": [1]}))));
        }
    }
}
