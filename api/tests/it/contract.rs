//! The `OpenAPI` document: complete, and changed only on purpose.

use std::collections::BTreeSet;

use serde_json::{Value, json};

fn document() -> Value {
    serde_json::to_value(api::document()).unwrap()
}

#[test]
fn the_document_is_the_one_that_was_reviewed() {
    insta::assert_json_snapshot!("openapi", document());
}

#[test]
fn every_reference_leads_somewhere() {
    fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 10);
    for reference in found {
        assert!(
            document.pointer(reference.trim_start_matches('#')).is_some(),
            "{reference}"
        );
    }
}

#[test]
fn operations_have_names_of_their_own_and_a_summary() {
    let document = document();
    let mut names = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name), "{method} {path}: {name} is there twice");
            assert!(operation["summary"].is_string(), "{method} {path}");
        }
    }
}

#[test]
fn the_codes_of_problems_are_a_closed_set() {
    let codes: Vec<Value> = api::problem::Code::ALL.iter().map(|code| json!(code)).collect();
    let document = document();
    let schema = &document["components"]["schemas"]["Code"];
    let listed = schema["enum"].as_array().cloned().unwrap_or_else(|| {
        schema["oneOf"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|one| one["enum"].as_array().unwrap().clone())
            .collect()
    });
    assert_eq!(listed, codes);
}
