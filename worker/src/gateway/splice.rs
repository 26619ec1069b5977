//! One value of a JSON object replaced, and every other byte left as it is.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;

/// The object with `json` as the value of `key`, which is put in front when it is not there. None when the body is no
/// JSON object.
pub(super) fn replaced(body: &Bytes, key: &str, json: &str) -> Option<Bytes> {
    let text = std::str::from_utf8(body).ok()?;
    let values: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    if let Some(value) = values.get(key) {
        let old = value.get();
        // A raw value is a piece of the text that it was read from.
        let start = old.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
        let (before, after) = (text.get(..start)?, text.get(start + old.len()..)?);
        return Some([before, json, after].concat().into());
    }
    let (before, after) = text.split_once('{')?;
    let comma = if values.is_empty() { "" } else { "," };
    let name = serde_json::to_string(key).ok()?;
    Some([before, "{", &name, ":", json, comma, after].concat().into())
}

/// The same for a key of the object that `outer` is, which is made one when it is none.
pub(super) fn replaced_within(body: &Bytes, outer: &str, key: &str, json: &str) -> Option<Bytes> {
    let values: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let inner = values.get(outer).map(|value| body.slice_ref(value.get().as_bytes()));
    let none = Bytes::from_static(b"{}");
    let inner = inner
        .and_then(|inner| replaced(&inner, key, json))
        .or_else(|| replaced(&none, key, json))?;
    replaced(body, outer, std::str::from_utf8(&inner).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replace(body: &str, key: &str, json: &str) -> String {
        let replaced = replaced(&Bytes::copy_from_slice(body.as_bytes()), key, json).unwrap();
        String::from_utf8(replaced.to_vec()).unwrap()
    }

    #[test]
    fn nothing_but_the_value_changes() {
        let body = " { \"a\" : \"{model}\" , \"m\\u006fdel\" : \"old\"  ,\n\"x\":[{\"model\":1}]}\n";
        let expected = " { \"a\" : \"{model}\" , \"m\\u006fdel\" : \"new\"  ,\n\"x\":[{\"model\":1}]}\n";
        assert_eq!(replace(body, "model", "\"new\""), expected);
    }

    #[test]
    fn a_value_that_is_not_there_is_put_in_front() {
        assert_eq!(replace(" {\"a\":1}", "b", "{\"c\":2}"), " {\"b\":{\"c\":2},\"a\":1}");
        assert_eq!(replace("{ }", "b", "1"), "{\"b\":1 }");
    }

    #[test]
    fn a_value_within_a_value_leaves_its_neighbours() {
        let within = |body: &str| {
            let body = Bytes::copy_from_slice(body.as_bytes());
            let replaced = replaced_within(&body, "o", "u", "true").unwrap();
            String::from_utf8(replaced.to_vec()).unwrap()
        };
        assert_eq!(
            within("{\"a\":1,\"o\": {\"x\" :false, \"u\":false}}"),
            "{\"a\":1,\"o\": {\"x\" :false, \"u\":true}}"
        );
        assert_eq!(within("{\"o\":{\"x\":1}}"), "{\"o\":{\"u\":true,\"x\":1}}");
        for body in ["{\"o\":null}", "{\"o\":\"x\"}", "{}"] {
            assert_eq!(within(body), "{\"o\":{\"u\":true}}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(replaced(&Bytes::from_static(b"[1]"), "a", "1").is_none());
        assert!(replaced(&Bytes::from_static(b"\xff"), "a", "1").is_none());
    }
}
