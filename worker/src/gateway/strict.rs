//! JSON that two readers cannot understand in two ways, read at a bounded cost.
//!
//! A body is checked here and read again by the provider. Of a key that comes twice one reader may take the first and
//! the other the last, so that what was checked is not what is done: such a body is refused. What a program sends costs
//! the worker little beside its bytes: texts stay in the body, and of values there are only so many.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::ops::Index;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Values and keys of a body. Each costs some fifty bytes for as long as it is looked at.
const VALUES_MAX: usize = 500_000;

/// A value of a body, of which it borrows the texts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json<'b> {
    Null,
    Bool(bool),
    /// A number; which one when it is whole and not negative.
    Number(Option<u64>),
    Text(Cow<'b, str>),
    List(Box<[Self]>),
    /// By key.
    Object(Box<[(Cow<'b, str>, Self)]>),
}

/// Reads a document without double keys.
///
/// # Errors
/// Where and why it is none, or is too much.
pub(super) fn parse(body: &[u8]) -> Result<Json<'_>, serde_json::Error> {
    parse_up_to(VALUES_MAX, body)
}

fn parse_up_to(values_max: usize, body: &[u8]) -> Result<Json<'_>, serde_json::Error> {
    let left = Cell::new(values_max);
    let mut from = serde_json::Deserializer::from_slice(body);
    let json = Reader { left: &left }.deserialize(&mut from)?;
    from.end()?;
    Ok(json)
}

impl Json<'_> {
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self, Self::Object(_))
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Number(number) => *number,
            _ => None,
        }
    }
}

impl Index<&str> for Json<'_> {
    type Output = Self;

    /// The value of a key; null where there is none.
    fn index(&self, key: &str) -> &Self {
        let Self::Object(entries) = self else {
            return &Json::Null;
        };
        let found = entries.binary_search_by(|(known, _)| known.as_ref().cmp(key));
        let entry = found.ok().and_then(|at| entries.get(at));
        entry.map_or(&Json::Null, |(_, value)| value)
    }
}

#[derive(Clone, Copy)]
struct Reader<'c> {
    /// How many more there may be.
    left: &'c Cell<usize>,
}

impl<'b> DeserializeSeed<'b> for Reader<'_> {
    type Value = Json<'b>;

    fn deserialize<D: Deserializer<'b>>(self, from: D) -> Result<Json<'b>, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom("too many values"))?);
        from.deserialize_any(self)
    }
}

impl<'b> Visitor<'b> for Reader<'_> {
    type Value = Json<'b>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'b>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'b>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'b>, E> {
        Ok(Json::Number(value.try_into().ok()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'b>, E> {
        Ok(Json::Number(Some(value)))
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Json<'b>, E> {
        Ok(Json::Number(None))
    }

    fn visit_borrowed_str<E>(self, value: &'b str) -> Result<Json<'b>, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json<'b>, E> {
        Ok(Json::Text(value.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut from: A) -> Result<Json<'b>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = from.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Json::List(values.into()))
    }

    fn visit_map<A: MapAccess<'b>>(self, mut from: A) -> Result<Json<'b>, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = from.next_entry_seed(self, self)? {
            let Json::Text(key) = key else {
                return Err(A::Error::custom("a key is no text"));
            };
            entries.push((key, value));
        }
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let twice = entries.windows(2).find_map(|pair| match pair {
            [(one, _), (other, _)] if one == other => Some(one),
            _ => None,
        });
        if let Some(key) = twice {
            return Err(A::Error::custom(format_args!("the key {key:?} comes twice")));
        }
        Ok(Json::Object(entries.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_key_that_comes_twice_is_refused_wherever_it_is() {
        for text in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a","x":0,"mod\u0065l":"b"}"#,
            r#"{"tools":[{"type":"custom","name":"x","type":"web_search_20250305"}]}"#,
        ] {
            assert!(
                parse(text.as_bytes()).unwrap_err().to_string().contains("comes twice"),
                "{text}"
            );
        }
        assert!(parse(br#"{"a":{"x":1},"b":{"x":1}}"#).is_ok());
        for text in ["", "{", "{} {}", "[1,]", "\u{feff}{}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn there_are_only_so_many_values_and_keys() {
        let body = br#"{"a":[{"":0},[],"x"]}"#;
        assert!(parse_up_to(8, body).is_ok());
        let error = parse_up_to(7, body).unwrap_err().to_string();
        assert!(error.contains("too many values"), "{error}");
        let many = format!("[{}0]", "{\"\":0},".repeat(VALUES_MAX / 3 + 1));
        assert!(parse(many.as_bytes()).is_err());
    }

    #[test]
    fn a_text_stays_in_the_body() {
        let body = r#"["plain", "esc\u0061ped"]"#;
        let Json::List(texts) = parse(body.as_bytes()).unwrap() else {
            panic!("a list")
        };
        assert!(matches!(&texts[0], Json::Text(Cow::Borrowed("plain"))));
        assert_eq!(texts[1].as_str(), Some("escaped"));
    }

    /// The same as the other reader has it.
    fn of(value: &Value) -> Json<'_> {
        match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.as_u64()),
            Value::String(text) => Json::Text(text.into()),
            Value::Array(values) => Json::List(values.iter().map(of).collect()),
            // These come by key.
            Value::Object(entries) => {
                let entries = entries.iter().map(|(key, value)| (key.into(), of(value)));
                Json::Object(entries.collect())
            }
        }
    }

    proptest! {
        #[test]
        fn other_documents_are_read_as_they_are(texts in proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..4), n: i64, f: f64, b: bool) {
            let value = json!({"texts": texts, "list": [n, f, b, null, {"deep": [texts]}]});
            let text = value.to_string();
            let read = parse(text.as_bytes()).unwrap();
            let expected = serde_json::from_str::<Value>(&text).unwrap();
            prop_assert_eq!(&read, &of(&expected));
            for key in texts.keys() {
                prop_assert_eq!(read["texts"][key].as_str(), texts.get(key).map(String::as_str));
            }
            prop_assert!(read["none"]["deeper"].is_null());
        }
    }
}
