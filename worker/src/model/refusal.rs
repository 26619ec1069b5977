//! Errors as the wire tells them: a status with a JSON body, or an event in the middle of a stream.

use std::time::Duration;

use chrono::DateTime;
use serde_json::Value;

use super::error::{Reason, Refusal};

/// Characters of a provider's words that are kept.
const MESSAGE_CHARS_MAX: usize = 1_000;

/// Error codes that come with status 429, or inside a `rate_limit_error`, and mean that money is used up.
const SPENT: [&str; 5] = [
    "billing_error",
    "enforced_spend_limit_reached",
    "credit_balance_exhausted",
    "credit_balance_too_low",
    "insufficient_quota",
];

/// The refusal in a response that is not 2xx. `header` finds a header by its lower-case name.
pub(super) fn from_response<'a>(status: u16, header: &dyn Fn(&str) -> Option<&'a str>, body: &[u8]) -> Refusal {
    let parsed: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let mut refusal = from_error(&parsed["error"], Some(status));
    if refusal.message.is_empty() {
        refusal.message = cut(String::from_utf8_lossy(body).trim());
    }
    refusal.request_id = header("request-id").or_else(|| header("x-request-id")).map(cut);
    refusal.request_id = refusal.request_id.or_else(|| parsed["request_id"].as_str().map(cut));
    refusal.retry_after = retry_after(header);
    refusal.should_retry = match header("x-should-retry") {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    refusal
}

/// The refusal in an `error` event of a stream that began well.
pub(super) fn from_event(event: &Value) -> Refusal {
    let mut refusal = from_error(&event["error"], None);
    refusal.request_id = event["request_id"].as_str().map(cut);
    refusal
}

fn from_error(error: &Value, status: Option<u16>) -> Refusal {
    let kind = error["type"].as_str().unwrap_or("error");
    let code = error["details"]["error_code"]
        .as_str()
        .or_else(|| error["code"].as_str());
    // A server that is no provider's own may say it in one word, or name the error by a number.
    let status = status.or_else(|| error["code"].as_u64().and_then(|code| code.try_into().ok()));
    Refusal {
        reason: reason(kind, code, status),
        status,
        kind: cut(code.unwrap_or(kind)),
        message: cut(error["message"].as_str().or_else(|| error.as_str()).unwrap_or_default()),
        request_id: None,
        retry_after: None,
        should_retry: None,
    }
}

fn reason(kind: &str, code: Option<&str>, status: Option<u16>) -> Reason {
    if SPENT.contains(&kind) || code.is_some_and(|code| SPENT.contains(&code)) {
        return Reason::SpendLimit;
    }
    match (code, status) {
        (Some("context_length_exceeded"), _) => return Reason::TooLarge,
        (Some("invalid_api_key"), _) => return Reason::Authentication,
        (Some("model_not_found"), _) => return Reason::NotFound,
        (Some("rate_limit_exceeded"), _) => return Reason::RateLimited,
        _ => {}
    }
    #[expect(clippy::match_same_arms, reason = "the order of the arms is the rule")]
    match (kind, status) {
        // OpenAI says this also of wrong keys and models, so the status is asked first.
        ("invalid_request_error", None | Some(400 | 405 | 415 | 422)) => Reason::InvalidRequest,
        ("authentication_error" | "permission_error", _) | (_, Some(401 | 403)) => Reason::Authentication,
        ("not_found_error", _) | (_, Some(404)) => Reason::NotFound,
        ("request_too_large", _) | (_, Some(413)) => Reason::TooLarge,
        ("rate_limit_error", _) | (_, Some(429)) => Reason::RateLimited,
        ("overloaded_error", _) | (_, Some(503 | 529)) => Reason::Overloaded,
        ("timeout_error", _) | (_, Some(408 | 504)) => Reason::Timeout,
        (_, Some(402)) => Reason::SpendLimit,
        // A conflict is a matter of the moment, as the provider's own clients hold.
        (_, Some(409)) => Reason::Server,
        (_, Some(300..=499)) => Reason::InvalidRequest,
        _ => Reason::Server,
    }
}

/// `Retry-After` in seconds or as a date, or `retry-after-ms`. A date is read against the answer's own `Date`, so that
/// a wrong clock here changes nothing.
fn retry_after<'a>(header: &dyn Fn(&str) -> Option<&'a str>) -> Option<Duration> {
    let number = |name: &str| header(name)?.trim().parse::<f64>().ok().filter(|n| *n >= 0.0);
    if let Some(ms) = number("retry-after-ms") {
        return Duration::try_from_secs_f64(ms / 1_000.0).ok();
    }
    if let Some(seconds) = number("retry-after") {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = |name: &str| DateTime::parse_from_rfc2822(header(name)?.trim()).ok();
    let wait = date("retry-after")?.signed_duration_since(date("date")?);
    Some(wait.to_std().unwrap_or(Duration::ZERO))
}

/// A provider's words, cut to a sensible length and without control characters.
fn cut(text: &str) -> String {
    text.chars()
        .take(MESSAGE_CHARS_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn none(_: &str) -> Option<&'static str> {
        None
    }

    #[rstest]
    #[case(
        400,
        r#"{"type":"error","error":{"type":"invalid_request_error","message":"m"}}"#,
        Reason::InvalidRequest
    )]
    #[case(
        401,
        r#"{"type":"error","error":{"type":"authentication_error","message":"m"}}"#,
        Reason::Authentication
    )]
    #[case(
        402,
        r#"{"type":"error","error":{"type":"billing_error","message":"m"}}"#,
        Reason::SpendLimit
    )]
    #[case(
        404,
        r#"{"type":"error","error":{"type":"not_found_error","message":"m"}}"#,
        Reason::NotFound
    )]
    #[case(
        413,
        r#"{"type":"error","error":{"type":"request_too_large","message":"m"}}"#,
        Reason::TooLarge
    )]
    #[case(
        429,
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"m"}}"#,
        Reason::RateLimited
    )]
    #[case(429, r#"{"error":{"type":"rate_limit_error","message":"m","details":{"error_code":"enforced_spend_limit_reached"}}}"#, Reason::SpendLimit)]
    #[case(
        429,
        r#"{"error":{"type":"x","code":"credit_balance_exhausted","message":"m"}}"#,
        Reason::SpendLimit
    )]
    #[case(
        500,
        r#"{"type":"error","error":{"type":"api_error","message":"m"}}"#,
        Reason::Server
    )]
    #[case(
        504,
        r#"{"type":"error","error":{"type":"timeout_error","message":"m"}}"#,
        Reason::Timeout
    )]
    #[case(
        529,
        r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
        Reason::Overloaded
    )]
    #[case(502, "<html>m</html>", Reason::Server)]
    #[case(
        401,
        r#"{"error":{"message":"m","type":"invalid_request_error","code":"invalid_api_key"}}"#,
        Reason::Authentication
    )]
    #[case(
        404,
        r#"{"error":{"message":"m","type":"invalid_request_error","code":"model_not_found"}}"#,
        Reason::NotFound
    )]
    #[case(
        404,
        r#"{"error":{"message":"model \"x\" not found","type":"api_error"}}"#,
        Reason::NotFound
    )]
    #[case(
        400,
        r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
        Reason::TooLarge
    )]
    #[case(
        429,
        r#"{"error":{"message":"m","type":"requests","code":"rate_limit_exceeded"}}"#,
        Reason::RateLimited
    )]
    #[case(
        429,
        r#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#,
        Reason::SpendLimit
    )]
    #[case(500, r#"{"error":"m: cannot load"}"#, Reason::Server)]
    #[case(301, "m", Reason::InvalidRequest)]
    #[case(413, "m", Reason::TooLarge)]
    fn a_status_and_its_body_have_one_reason(#[case] status: u16, #[case] body: &str, #[case] reason: Reason) {
        let refusal = from_response(status, &none, body.as_bytes());
        assert_eq!((refusal.reason, refusal.status), (reason, Some(status)));
        assert!(refusal.message.contains('m'), "{refusal:?}");
    }

    #[test]
    fn the_headers_say_when_and_whether_to_try_again() {
        let header = |name: &str| match name {
            "retry-after" => Some("7"),
            "x-should-retry" => Some("false"),
            "request-id" => Some("req_1"),
            _ => None,
        };
        let refusal = from_response(429, &header, b"");
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(
            (refusal.should_retry, refusal.request_id.as_deref()),
            (Some(false), Some("req_1"))
        );
    }

    #[rstest]
    #[case(&[("retry-after", "1.5")], Some(1_500))]
    #[case(&[("retry-after", "9"), ("retry-after-ms", "250")], Some(250))]
    #[case(&[("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT"), ("date", "Wed, 21 Oct 2026 07:28:00 GMT")], Some(30_000))]
    #[case(&[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), ("date", "Wed, 21 Oct 2026 07:28:30 GMT")], Some(0))]
    #[case(&[("retry-after", "-1")], None)]
    #[case(&[("retry-after", "1e400")], None)]
    #[case(&[("retry-after", "soon")], None)]
    fn retry_after_is_read_in_all_its_forms(
        #[case] headers: &[(&str, &'static str)],
        #[case] expected_ms: Option<u64>,
    ) {
        let header = |name: &str| {
            headers
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| *value)
        };
        assert_eq!(retry_after(&header), expected_ms.map(Duration::from_millis));
    }

    #[test]
    fn long_words_are_cut_and_control_characters_are_blanked() {
        let body = format!("a\u{1b}[31m\n{}", "é".repeat(5_000));
        let refusal = from_response(500, &none, body.as_bytes());
        assert_eq!(refusal.message.chars().count(), MESSAGE_CHARS_MAX);
        assert!(!refusal.message.chars().any(char::is_control));
    }
}
