//! What is the same in the requests of both wires.

use serde_json::{Value, json};

use crate::model::{Attachment, ModelRequest, ToolDefinition};

/// Adds what is sent only when it is set: tools as `tool` writes them, the temperature, and texts to stop at under a name.
pub(in crate::model) fn add_options(
    body: &mut Value,
    request: &ModelRequest,
    tool: fn(&ToolDefinition) -> Value,
    stop_name: &str,
) {
    if !request.tools.is_empty() {
        body["tools"] = request.tools.iter().map(tool).collect();
    }
    if let Some(temperature) = request.temperature {
        body["temperature"] = json!(temperature);
    }
    if !request.stop_sequences.is_empty() {
        body[stop_name] = json!(request.stop_sequences);
    }
}

/// A block of text.
pub(in crate::model) fn said(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// A file that a message names: an image as `show` writes it, or its name.
pub(in crate::model) fn file(
    request: &ModelRequest,
    path: &str,
    media_type: Option<&str>,
    show: impl FnOnce(&Attachment) -> Value,
) -> Value {
    match request.attachments.get(path) {
        Some(image) => show(image),
        None => said(&Attachment::named(path, media_type)),
    }
}
