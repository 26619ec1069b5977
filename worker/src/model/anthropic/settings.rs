//! Where Anthropic Messages is, its key and its time limits.

use std::path::PathBuf;
use std::time::Duration;

use common::config::Secret;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::model::Error;

const PUBLIC_URL: &str = "https://api.anthropic.com";

/// `[model.anthropic]`: a server that speaks Anthropic Messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnthropicSettings {
    /// Where it is, with or without `/v1`; empty is the public one.
    pub base_url: String,
    /// The key; local servers need none.
    pub api_key: Secret,
    /// A file whose content is the key; used when `api_key` is empty.
    pub api_key_file: Option<PathBuf>,
    /// Longest time to a connection.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest time from the request to the first byte of the answer.
    #[serde(with = "humantime_serde")]
    pub first_byte_timeout: Duration,
    /// Longest time between two bytes of the answer; the server's pings count.
    #[serde(with = "humantime_serde")]
    pub silence_timeout: Duration,
}

impl Default for AnthropicSettings {
    fn default() -> Self {
        Self {
            base_url: PUBLIC_URL.to_owned(),
            api_key: Secret::default(),
            api_key_file: None,
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_mins(1),
            silence_timeout: Duration::from_mins(1),
        }
    }
}

impl AnthropicSettings {
    /// Whether there is anything to use: a key, or a server of one's own.
    pub fn is_set_up(&self) -> bool {
        !self.api_key.is_empty() || self.key_file().is_some() || self.base_url() != PUBLIC_URL
    }

    fn base_url(&self) -> &str {
        if self.base_url.is_empty() {
            PUBLIC_URL
        } else {
            self.base_url.trim_end_matches('/')
        }
    }

    fn key_file(&self) -> Option<&PathBuf> {
        self.api_key_file.as_ref().filter(|path| !path.as_os_str().is_empty())
    }

    /// The key, from the setting or its file.
    pub(super) fn resolved_key(&self) -> Result<Option<Secret>, Error> {
        match self.key_file() {
            _ if !self.api_key.is_empty() => Ok(Some(self.api_key.clone())),
            None => Ok(None),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(Secret::from(text.trim().to_owned()))),
                Err(error) => Err(fault(&format!("cannot read api_key_file {}: {error}", path.display()))),
            },
        }
    }

    /// The URL that messages are posted to.
    pub(super) fn messages_url(&self) -> Result<Url, Error> {
        let base = self.base_url();
        let path = if base.ends_with("/v1") {
            "/messages"
        } else {
            "/v1/messages"
        };
        let url: Url = format!("{base}{path}")
            .parse()
            .map_err(|error| fault(&format!("base_url {:?} is no URL: {error}", self.base_url)))?;
        match url.scheme() {
            "http" | "https" if url.username().is_empty() && url.password().is_none() => Ok(url),
            "http" | "https" => Err(fault("base_url must not contain a user or password")),
            _ => Err(fault("base_url must begin with http:// or https://")),
        }
    }
}

/// Whether the URL names this machine: such a server is reached directly, whatever proxy the environment names.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// A fault of these settings.
pub(super) fn fault(reason: &str) -> Error {
    Error::Settings {
        provider: "anthropic",
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn at(base_url: &str) -> AnthropicSettings {
        AnthropicSettings {
            base_url: base_url.to_owned(),
            ..AnthropicSettings::default()
        }
    }

    #[rstest]
    #[case("https://api.anthropic.com", "https://api.anthropic.com/v1/messages")]
    #[case("", "https://api.anthropic.com/v1/messages")]
    #[case("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/messages")]
    #[case(
        "https://gateway.example.com/anthropic",
        "https://gateway.example.com/anthropic/v1/messages"
    )]
    fn the_base_url_may_end_in_the_version(#[case] base: &str, #[case] expected: &str) {
        assert_eq!(at(base).messages_url().unwrap().as_str(), expected);
    }

    #[test]
    fn a_wrong_base_url_is_named() {
        for base in ["/", "ftp://example.com", "https://user:pw@example.com", "not a url"] {
            let error = at(base).messages_url().unwrap_err().to_string();
            assert!(error.contains("base_url") && !error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (url, expected) in [
            ("http://127.0.0.1:1/", true),
            ("http://[::1]:1/", true),
            ("http://localhost/", true),
            ("http://localhost.example.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), expected, "{url}");
        }
    }
}
