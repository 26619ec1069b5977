//! JSON of models and programs: how deep it may be.

use serde_json::Value;

/// Levels that a value may have. Events and messages wrap it in a few more, and `serde_json` writes any number of them but
/// reads no more than 127: what is accepted deeper than that could be written, and never read again.
pub const DEPTH_MAX: usize = 64;

/// Whether a value has more levels than [`DEPTH_MAX`].
pub fn is_deep(value: &Value) -> bool {
    has_more_levels(value, DEPTH_MAX)
}

fn has_more_levels(value: &Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else {
        return value.is_array() || value.is_object();
    };
    match value {
        Value::Array(items) => items.iter().any(|item| has_more_levels(item, below)),
        Value::Object(fields) => fields.values().any(|field| has_more_levels(field, below)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_counted_on_every_branch() {
        let nested = |levels: usize| (0..levels).fold(Value::from(1), |inner, _| Value::from(vec![inner]));
        assert!(!is_deep(&nested(DEPTH_MAX)));
        assert!(is_deep(&nested(DEPTH_MAX + 1)));
        let wide = serde_json::json!({"a": [1, 2], "b": {"c": nested(DEPTH_MAX - 1)}});
        assert!(is_deep(&wide));
        assert!(!is_deep(&wide["b"]));
    }
}
