//! Answers that are files: conditions, ranges, and heads that keep a browser from showing them as pages of ours.
//!
//! RFC 9110: `If-Match`, `If-None-Match`, `If-Range` and a single range; of several ranges the whole is sent, as it allows.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};

use crate::problem::{Code, Problem};

/// What a browser may do with it: nothing.
const SANDBOX: &str = "sandbox; default-src 'none'";

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Its tag, quoted: of equal bytes, an equal one.
    pub(crate) etag: String,
    /// Bytes.
    pub(crate) size: u64,
    /// The path, whose last name is the file's.
    pub(crate) path: String,
    /// When it was changed, where that is known.
    pub(crate) modified_at: Option<DateTime<Utc>>,
}

/// The part of a content that is to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    content: Content,
    /// Which bytes.
    pub(crate) range: Range<u64>,
    is_whole: bool,
}

impl Content {
    /// What of it a request wants, or the answer without any of it.
    pub(crate) fn wanted(self, headers: &HeaderMap) -> Result<Part, Box<Response>> {
        if let Err(problem) = if_match(headers, Some(&self.etag)) {
            return Err(Box::new(problem.into_response()));
        }
        if names(headers, &header::IF_NONE_MATCH, &self.etag, true) {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            self.describe(response.headers_mut());
            return Err(Box::new(response));
        }
        let size = self.size;
        let may_cut = headers
            .get(header::IF_RANGE)
            .is_none_or(|tag| tag.as_bytes() == self.etag.as_bytes());
        match headers
            .get(header::RANGE)
            .filter(|_| may_cut)
            .map(|range| parse(range, size))
        {
            None | Some(Asked::Whole) => Ok(Part {
                content: self,
                range: 0..size,
                is_whole: true,
            }),
            Some(Asked::Part(range)) => Ok(Part {
                content: self,
                range,
                is_whole: false,
            }),
            Some(Asked::Nothing) => {
                let problem = Problem::new(Code::RangeNotSatisfiable, format!("it has {size} bytes"));
                let mut response = problem.into_response();
                insert(
                    response.headers_mut(),
                    header::CONTENT_RANGE,
                    &format!("bytes */{size}"),
                );
                Err(Box::new(response))
            }
        }
    }

    fn describe(&self, headers: &mut HeaderMap) {
        insert(headers, header::ETAG, &self.etag);
        // Whoever keeps it asks each time whether it is still this, and nobody keeps it for others.
        insert(headers, header::CACHE_CONTROL, "private, no-cache");
        if let Some(at) = self.modified_at {
            insert(
                headers,
                header::LAST_MODIFIED,
                &at.format("%a, %d %b %Y %H:%M:%S GMT").to_string(),
            );
        }
    }
}

impl Part {
    /// The answer, with the bytes of [`Self::range`].
    pub(crate) fn response(self, body: Body) -> Response {
        let Self {
            content,
            range,
            is_whole,
        } = self;
        let status = if is_whole {
            StatusCode::OK
        } else {
            StatusCode::PARTIAL_CONTENT
        };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        content.describe(headers);
        attach(headers, &content.path);
        insert(headers, header::CONTENT_TYPE, content_type(&content.path));
        insert(headers, header::ACCEPT_RANGES, "bytes");
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
        if !is_whole {
            let (first, last) = (range.start, range.end.saturating_sub(1));
            let text = format!("bytes {first}-{last}/{}", content.size);
            insert(headers, header::CONTENT_RANGE, &text);
        }
        response
    }
}

/// Marks an answer as a file to be kept: whatever a job wrote is never shown as a page of ours.
pub(crate) fn attach(headers: &mut HeaderMap, path: &str) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name = path.rsplit('/').next().unwrap_or_default();
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    insert(
        headers,
        header::CONTENT_DISPOSITION,
        &format!("attachment; filename=\"{name}\""),
    );
    insert(headers, HeaderName::from_static("content-security-policy"), SANDBOX);
}

/// Refuses a request whose `If-Match` names another version than this one, or any when there is none.
pub(crate) fn if_match(headers: &HeaderMap, etag: Option<&str>) -> Result<(), Problem> {
    let is_asked = headers.contains_key(header::IF_MATCH);
    if is_asked && !etag.is_some_and(|etag| names(headers, &header::IF_MATCH, etag, false)) {
        return Err(Problem::new(Code::PreconditionFailed, "it is not what If-Match names"));
    }
    Ok(())
}

/// Whether a list of tags names this one, or everything. Weak tags count where bytes need not be compared.
pub(crate) fn names(headers: &HeaderMap, list: &HeaderName, etag: &str, weak: bool) -> bool {
    let all = headers.get_all(list).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(',')).map(str::trim).any(|tag| {
        let tag = if weak {
            tag.strip_prefix("W/").unwrap_or(tag)
        } else {
            tag
        };
        tag == "*" || tag == etag
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    Nothing,
}

fn parse(value: &HeaderValue, size: u64) -> Asked {
    let text = value.to_str().unwrap_or_default();
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Asked::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Some(first), None) if last.trim().is_empty() => first..size,
        (None, Some(last)) if first.trim().is_empty() => size.saturating_sub(last)..size,
        // Several ranges, or no range at all.
        _ => return Asked::Whole,
    };
    if range.is_empty() {
        Asked::Nothing
    } else {
        Asked::Part(range)
    }
}

/// What a file is by its name. Nothing that a browser would run is named as what it is.
pub(crate) fn content_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ending = name
        .rsplit_once('.')
        .map_or("", |(_, ending)| ending)
        .to_ascii_lowercase();
    match ending.as_str() {
        "txt" | "log" | "md" | "py" | "js" | "ts" | "sh" | "rs" | "go" | "c" | "h" | "java" | "rb" | "toml"
        | "yaml" | "yml" | "ini" | "sql" | "tex" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "json" => "application/json",
        "jsonl" | "ndjson" => "application/x-ndjson",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "bmp" => "image/bmp",
        "pdf" => "application/pdf",
        "mp3" => "audio/mpeg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "parquet" => "application/vnd.apache.parquet",
        _ => "application/octet-stream",
    }
}

pub(crate) fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("bytes=0-3", Asked::Part(0..4))]
    #[case("bytes=2-", Asked::Part(2..10))]
    #[case("bytes=-3", Asked::Part(7..10))]
    #[case("bytes=-30", Asked::Part(0..10))]
    #[case("bytes=5-99999999999999999999", Asked::Whole)]
    #[case("bytes=5-18446744073709551615", Asked::Part(5..10))]
    #[case("bytes=10-", Asked::Nothing)]
    #[case("bytes=-0", Asked::Nothing)]
    #[case("bytes=3-1", Asked::Whole)]
    #[case("bytes=0-1,4-5", Asked::Whole)]
    #[case("lines=0-1", Asked::Whole)]
    fn ranges_are_read_as_the_standard_says(#[case] range: &'static str, #[case] asked: Asked) {
        assert_eq!(parse(&HeaderValue::from_static(range), 10), asked);
    }

    #[test]
    fn pages_are_never_named_as_pages() {
        for name in ["x.html", "x.svg", "x.xhtml", "x.xml", "X.HTM", "x"] {
            assert_eq!(content_type(name), "application/octet-stream", "{name}");
        }
        assert_eq!(content_type("out/a.PNG"), "image/png");
    }

    #[test]
    fn tags_are_compared_in_lists() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"a\", W/\"b\""));
        assert!(names(&headers, &header::IF_NONE_MATCH, "\"b\"", true));
        assert!(!names(&headers, &header::IF_NONE_MATCH, "\"b\"", false));
        assert!(!names(&headers, &header::IF_NONE_MATCH, "\"c\"", true));
    }
}
