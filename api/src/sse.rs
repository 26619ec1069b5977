//! Server-sent events as bytes: what a browser, a proxy and a dropped connection need to find in them.
//!
//! | on the wire | why |
//! |---|---|
//! | `retry: 2000` first | a client that lost the connection comes back after 2 s |
//! | `id:` on every event of a job | the client sends it back as `Last-Event-ID` |
//! | `: hb` as one line, without a blank one | a blank line makes some clients see an empty event |
//! | `X-Accel-Buffering: no`, `no-transform` | proxies pass bytes on as they come |

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use common::job::event::Event;
use futures_util::Stream;
use serde::Serialize;

/// The first bytes of every stream.
pub const PREAMBLE: &[u8] = b"retry: 2000\n";
/// What is sent when nothing happens.
pub const HEARTBEAT: &[u8] = b": hb\n";

/// Appends one event of a job.
pub fn write_event(out: &mut Vec<u8>, event: &Event) {
    out.extend_from_slice(format!("id: {}\n", event.seq).as_bytes());
    write_named(out, event.body.name(), event);
}

/// Appends an event without an id.
pub fn write_named(out: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    // JSON as serde writes it has no line break, so one `data:` line is enough.
    let data = serde_json::to_string(data).unwrap_or_default();
    out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
}

/// Whether the caller wants a stream and not a page.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accept.flat_map(|value| value.split(',')).any(|range| {
        range
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .eq_ignore_ascii_case("text/event-stream")
    })
}

/// The answer whose body is made while the client takes it.
pub fn response(frames: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    use futures_util::StreamExt;
    let mut response = Response::new(Body::from_stream(frames.map(Ok::<_, std::convert::Infallible>)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use common::job::event::EventBody;

    #[test]
    fn an_event_is_these_bytes() {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let event = Event {
            seq: 7,
            at,
            attempt: 1,
            body: EventBody::Stdout {
                text: "a\nb\r\n\0".to_owned(),
            },
        };
        let mut out = Vec::new();
        write_event(&mut out, &event);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "id: 7\nevent: stdout\ndata: {\"seq\":7,\"at\":\"2027-01-15T08:00:00Z\",\"attempt\":1,\"type\":\"stdout\",\
             \"text\":\"a\\nb\\r\\n\\u0000\"}\n\n"
        );
    }

    #[rstest::rstest]
    #[case("text/event-stream", true)]
    #[case("application/json, text/event-stream;q=0.9", true)]
    #[case("*/*", false)]
    #[case("application/json", false)]
    fn a_stream_is_asked_for_by_name(#[case] accept: &str, #[case] wanted: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        assert_eq!(is_wanted(&headers), wanted);
    }
}
