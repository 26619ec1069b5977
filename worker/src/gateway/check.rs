//! What a request may hold: pure.
//!
//! A provider can fetch addresses, run code and call other servers itself when a request asks for it. From inside a
//! sandbox each of these is a way out, so each is refused unless the agent names it. What is not known is refused where
//! it would be a tool or a source of content, and passes where it is a setting of the model.

use super::strict::Json;
use crate::model::wire::{Route, Wire};

/// Tools that the program itself runs: the provider only knows their shape.
const OWN_TOOLS: [&str; 6] = ["custom", "function", "bash", "text_editor", "computer", "memory"];

/// Settings that reach beyond the model that was asked, and what an agent names to allow them.
const BEYOND: [(&str, &str); 13] = [
    ("mcp_servers", "mcp_servers"),
    ("container", "containers"),
    ("web_search_options", "web_search"),
    // The same elsewhere: xAI, which fetches feeds from any address that is named there, and Qwen.
    ("search_parameters", "web_search"),
    ("enable_search", "web_search"),
    ("search_options", "web_search"),
    ("plugins", "plugins"),
    ("data_sources", "data_sources"),
    // Other models than the one that is checked.
    ("models", "other_models"),
    ("fallbacks", "other_models"),
    ("fallback_models", "other_models"),
    // Where vLLM fetches from and sends to.
    ("kv_transfer_params", "kv_transfer_params"),
    // A template is a program that the server runs.
    ("chat_template", "chat_template"),
];

/// What the agent names, as its `provider_features`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a>(pub(super) &'a [String]);

/// A request that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The model as the program names it.
    pub(super) model: String,
    /// Whether the answer comes as events.
    pub(super) is_stream: bool,
    /// Whether the program itself asked for usage at the end of Chat Completions' events.
    pub(super) wants_usage: bool,
    /// Tokens that may be written, of all choices together.
    pub(super) output_tokens_max: u32,
    /// Of those, tokens that may be thought, when the request says so.
    pub(super) thinking_tokens: Option<u64>,
    /// Whether it names a limit of its own.
    pub(super) names_limit: bool,
    /// How many answers it wants, each of which has the limit.
    pub(super) choices: u32,
}

/// Tokens of an answer to a request that names no limit: that many are put in where a budget is set, which is as many as
/// every model in use takes.
const OUTPUT_TOKENS_UNSAID: u32 = 16_384;

/// A number of the request. One with a fraction is refused even if that is 0: some servers take it for the whole number, and
/// then nobody would have held that much.
fn whole(body: &Json<'_>, name: &str) -> Result<Option<u32>, Fault> {
    let value = &body[name];
    match value.as_u64() {
        Some(number) => Ok(Some(u32::try_from(number).unwrap_or(u32::MAX))),
        None if value.is_null() => Ok(None),
        None => Err(malformed(format!("{name}: is a whole number"))),
    }
}

/// Why a request is not passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// It asks for more than the agent may.
    #[error("{what} is not allowed here: the agent does not name {feature:?} in its provider_features")]
    NotNamed {
        /// What it asks for.
        what: String,
        /// What would allow it.
        feature: String,
    },
}

fn malformed(what: impl Into<String>) -> Fault {
    Fault::Malformed(what.into())
}

impl Named<'_> {
    fn need(self, feature: &str, what: impl FnOnce() -> String) -> Result<(), Fault> {
        if self.0.iter().any(|named| named == feature) {
            return Ok(());
        }
        Err(Fault::NotNamed {
            what: what(),
            feature: feature.to_owned(),
        })
    }
}

/// Reads a body that was parsed strictly.
///
/// # Errors
/// [`Fault`].
pub(super) fn check(route: Route, body: &Json<'_>, named: Named<'_>) -> Result<Asked, Fault> {
    if !body.is_object() {
        return Err(malformed("the body is not a JSON object"));
    }
    let model = body["model"]
        .as_str()
        .ok_or_else(|| malformed("model: a string is required"))?;
    let is_stream = match &body["stream"] {
        Json::Null => false,
        Json::Bool(is_stream) => *is_stream,
        _ => return Err(malformed("stream: is true or false")),
    };
    for (key, feature) in BEYOND {
        if !is_nothing(&body[key]) {
            named.need(feature, || format!("{key:?}"))?;
        }
    }
    for tool in list(&body["tools"], "tools")? {
        self::tool(tool, named)?;
    }
    let wire = if route == Route::ChatCompletions {
        Wire::OpenAi
    } else {
        Wire::Anthropic
    };
    content(&body["system"], wire, named)?;
    for message in list(&body["messages"], "messages")? {
        content(&message["content"], wire, named)?;
    }
    let limit = whole(body, "max_tokens")?.max(whole(body, "max_completion_tokens")?);
    let choices = whole(body, "n")?.unwrap_or(1).max(1);
    Ok(Asked {
        model: model.to_owned(),
        output_tokens_max: limit.unwrap_or(OUTPUT_TOKENS_UNSAID).saturating_mul(choices),
        thinking_tokens: body["thinking"]["budget_tokens"].as_u64(),
        names_limit: limit.is_some(),
        choices,
        is_stream,
        wants_usage: body["stream_options"]["include_usage"] == Json::Bool(true),
    })
}

fn is_nothing(value: &Json<'_>) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::List(values) => values.is_empty(),
        Json::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn list<'a, 'b>(value: &'a Json<'b>, name: &str) -> Result<&'a [Json<'b>], Fault> {
    match value {
        Json::Null => Ok(&[]),
        Json::List(values) => Ok(values),
        _ => Err(malformed(format!("{name}: is a list"))),
    }
}

/// A tool without a type is the program's own.
fn tool(tool: &Json<'_>, named: Named<'_>) -> Result<(), Fault> {
    if !tool.is_object() {
        return Err(malformed("tools: each is an object"));
    }
    let kind = match &tool["type"] {
        Json::Null => return Ok(()),
        Json::Text(kind) => undated(kind),
        _ => return Err(malformed("tools: a type is a string")),
    };
    if OWN_TOOLS.contains(&kind) {
        return Ok(());
    }
    named.need(kind, || format!("the provider's tool {kind:?}"))
}

/// `web_search_20250305` is `web_search`.
fn undated(kind: &str) -> &str {
    match kind.rsplit_once('_') {
        Some((name, date)) if date.len() == 8 && date.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => kind,
    }
}

/// The content of a message, or of a part of one. What a model gave to a tool is data and is not looked at.
fn content(value: &Json<'_>, wire: Wire, named: Named<'_>) -> Result<(), Fault> {
    let part = match value {
        Json::List(parts) => return parts.iter().try_for_each(|part| content(part, wire, named)),
        Json::Object(part) => part,
        _ => return Ok(()),
    };
    let kind = value["type"].as_str().unwrap_or_default();
    // On the other wire what a model gave to a tool is a text, beside the content.
    if wire == Wire::Anthropic && kind.ends_with("tool_use") {
        return Ok(());
    }
    if kind == "container_upload" {
        named.need("files", || "a file of the provider's store".to_owned())?;
    }
    match wire {
        Wire::Anthropic => source(&value["source"], named)?,
        Wire::OpenAi => {
            for (key, inner) in part {
                if key.ends_with("_url") {
                    let address = inner.as_str().or_else(|| inner["url"].as_str());
                    inline(address, key, named)?;
                }
            }
            let file = &value["file"];
            if !file["file_id"].is_null() {
                named.need("files", || "a file of the provider's store".to_owned())?;
            }
            let data = file["file_data"].as_str().unwrap_or_default();
            if data.contains("://") {
                inline(Some(data), "file_data", named)?;
            }
        }
    }
    content(&value["content"], wire, named)
}

/// Where an image or a document of Anthropic's wire comes from.
fn source(source: &Json<'_>, named: Named<'_>) -> Result<(), Fault> {
    if !source.is_object() {
        return Ok(());
    }
    match source["type"].as_str() {
        Some("base64" | "text") => Ok(()),
        Some("content") => content(&source["content"], Wire::Anthropic, named),
        Some("file") => named.need("files", || "a file of the provider's store".to_owned()),
        _ => named.need("url_sources", || "content from an address".to_owned()),
    }
}

/// Content whose address holds it: nothing is fetched for it.
fn inline(address: Option<&str>, key: &str, named: Named<'_>) -> Result<(), Fault> {
    let scheme = address.and_then(|address| address.get(..5)).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("data:") {
        return Ok(());
    }
    named.need("url_sources", || format!("content from an address ({key})"))
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::strict::parse;
    use super::*;

    fn check(route: Route, body: &Value, named: Named<'_>) -> Result<Asked, Fault> {
        super::check(route, &parse(body.to_string().as_bytes()).unwrap(), named)
    }

    fn feature(route: Route, mut body: Value) -> Option<String> {
        body["model"] = "m".into();
        match check(route, &body, Named(&[])) {
            Ok(_) => None,
            Err(Fault::NotNamed { feature, .. }) => {
                // Naming exactly that is enough.
                check(route, &body, Named(std::slice::from_ref(&feature))).unwrap();
                Some(feature)
            }
            Err(Fault::Malformed(what)) => Some(what),
        }
    }

    fn said(block: impl Into<Value>) -> Value {
        let block = block.into();
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, block]}]})
    }

    #[rstest]
    #[case::search(json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "web_search")]
    #[case::fetch(json!({"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}), "web_fetch")]
    #[case::code(json!({"tools": [{"type": "code_execution_20250825", "name": "c"}]}), "code_execution")]
    #[case::toolset(json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "s"}]}), "mcp_toolset")]
    #[case::unknown(json!({"tools": [{"type": "teleport", "name": "t"}]}), "teleport")]
    #[case::servers(json!({"mcp_servers": [{"type": "url", "url": "https://a.example"}]}), "mcp_servers")]
    #[case::container(json!({"container": "c_1"}), "containers")]
    #[case::models(json!({"models": ["other"]}), "other_models")]
    #[case::image(said(json!({"type": "image", "source": {"type": "url", "url": "https://a.example/?secret"}})), "url_sources")]
    #[case::nested(said(json!({"type": "tool_result", "tool_use_id": "a", "content": [
        {"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}}]})), "url_sources")]
    #[case::odd_source(said(json!({"type": "image", "source": {"type": "new_thing"}})), "url_sources")]
    #[case::file(said(json!({"type": "document", "source": {"type": "file", "file_id": "f"}})), "files")]
    #[case::upload(said(json!({"type": "container_upload", "file_id": "f"})), "files")]
    #[case::system(json!({"system": [{"type": "document", "source": {"type": "url", "url": "x"}}]}), "url_sources")]
    fn what_reaches_beyond_the_model_must_be_named(#[case] body: Value, #[case] wanted: &str) {
        assert_eq!(feature(Route::Messages, body.clone()).as_deref(), Some(wanted));
        assert_eq!(feature(Route::CountTokens, body).as_deref(), Some(wanted));
    }

    #[rstest]
    #[case::search(json!({"web_search_options": {"x": 1}}), "web_search")]
    #[case::tool(json!({"tools": [{"type": "mcp", "server_url": "https://a.example"}]}), "mcp")]
    #[case::plugins(json!({"plugins": [{"id": "web"}]}), "plugins")]
    #[case::image(said(json!({"type": "image_url", "image_url": {"url": "https://a.example/?secret"}})), "url_sources")]
    #[case::text(said(json!({"type": "image_url", "image_url": "file:///etc/passwd"})), "url_sources")]
    #[case::video(said(json!({"type": "video_url", "video_url": {"url": "http://169.254.169.254/"}})), "url_sources")]
    #[case::no_address(said(json!({"type": "image_url", "image_url": {"href": "x"}})), "url_sources")]
    #[case::xai(json!({"search_parameters": {"mode": "on", "sources": [{"type": "rss", "links": ["http://x"]}]}}), "web_search")]
    #[case::qwen(json!({"enable_search": true}), "web_search")]
    #[case::vllm(json!({"kv_transfer_params": {"remote_host": "a.example"}}), "kv_transfer_params")]
    #[case::of_the_first_wire(said(json!({"type": "tool_use", "image_url": "https://a.example"})), "url_sources")]
    #[case::file(said(json!({"type": "file", "file": {"file_id": "f"}})), "files")]
    #[case::file_address(said(json!({"type": "file", "file": {"file_data": "https://a.example"}})), "url_sources")]
    fn the_same_holds_on_the_other_wire(#[case] body: Value, #[case] wanted: &str) {
        assert_eq!(feature(Route::ChatCompletions, body).as_deref(), Some(wanted));
    }

    #[test]
    fn everything_else_passes() {
        let body = json!({"tools": [{"name": "x", "input_schema": {}}, {"type": "custom", "name": "y"},
                {"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728", "name": "e"}],
            "mcp_servers": [], "container": null, "thinking": {"type": "enabled"}, "new_setting": {"a": 1},
            "messages": [{"role": "user", "content": "https://a.example"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "get",
                    "input": {"source": {"type": "url", "url": "https://a.example"}, "image_url": "http://x"}}]},
                {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}},
                    {"type": "search_result", "source": "https://a.example", "content": []}]}]});
        assert_eq!(feature(Route::Messages, body), None);
        let body = json!({"tools": [{"type": "function", "function": {"name": "x"}}], "enable_search": false, "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}}]},
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{\"image_url\":\"http://x\"}"}}]}]});
        assert_eq!(feature(Route::ChatCompletions, body), None);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for body in [
            json!([]),
            json!({}),
            json!({"model": 1}),
            json!({"model": "m", "stream": "true"}),
            json!({"model": "m", "tools": {}}),
            json!({"model": "m", "tools": ["web_search"]}),
            json!({"model": "m", "tools": [{"type": ["web_search"]}]}),
            json!({"model": "m", "messages": {"0": {}}}),
            json!({"model": "m", "max_tokens": 128_000.0}),
            json!({"model": "m", "max_tokens": "100"}),
            json!({"model": "m", "max_completion_tokens": -1}),
            json!({"model": "m", "n": 5.0}),
        ] {
            assert_matches!(
                check(Route::Messages, &body, Named(&[])),
                Err(Fault::Malformed(_)),
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_asked_is_read() {
        let body = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}});
        let asked = check(Route::ChatCompletions, &body, Named(&[])).unwrap();
        assert!(asked.is_stream && asked.wants_usage && asked.model == "m");
        assert!(!asked.names_limit);
        assert_eq!(asked.output_tokens_max, OUTPUT_TOKENS_UNSAID);
        let body = json!({"model": "m", "max_tokens": null, "max_completion_tokens": 10, "n": 3});
        let asked = check(Route::ChatCompletions, &body, Named(&[])).unwrap();
        assert_eq!((asked.output_tokens_max, asked.names_limit), (30, true));
    }
}
