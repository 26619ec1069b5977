//! Where a provider's server is, its key, its time limits and what it may be asked for.

use std::path::PathBuf;
use std::time::Duration;

use common::config::Secret;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::model::Error;
use crate::model::wire::Wire;

/// A server that speaks one of the wires.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSettings {
    /// What it speaks; of `anthropic` and `openai` their own, of others OpenAI's unless it is said here.
    pub wire: Option<Wire>,
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
    /// The same for an answer that is not streamed, whose first byte comes when it is whole.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// Longest time between two bytes of the answer; the server's pings count.
    #[serde(with = "humantime_serde")]
    pub silence_timeout: Duration,
    /// Calls of this key at once, of all workers together; 0 is no limit.
    pub calls_max: u32,
    /// Tokens that calls of this key may begin with or write in a minute, of all workers together; 0 is no limit.
    pub tokens_per_minute: u64,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            wire: None,
            base_url: String::new(),
            api_key: Secret::default(),
            api_key_file: None,
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_mins(1),
            answer_timeout: Duration::from_mins(10),
            silence_timeout: Duration::from_mins(1),
            calls_max: 0,
            tokens_per_minute: 0,
        }
    }
}

/// The public server of a wire.
pub(super) fn public_url(wire: Wire) -> &'static str {
    match wire {
        Wire::Anthropic => "https://api.anthropic.com",
        Wire::OpenAi => "https://api.openai.com",
    }
}

impl ServerSettings {
    /// Whether there is anything to use: a key, or a server of one's own.
    pub fn is_set_up(&self, wire: Wire) -> bool {
        !self.api_key.is_empty() || self.key_file().is_some() || !self.is_public(wire)
    }

    /// Whether this is the public server.
    pub(crate) fn is_public(&self, wire: Wire) -> bool {
        self.base_url(wire).trim_end_matches("/v1") == public_url(wire)
    }

    /// The address without a slash at its end.
    pub(super) fn base_url(&self, wire: Wire) -> &str {
        if self.base_url.is_empty() {
            public_url(wire)
        } else {
            self.base_url.trim_end_matches('/')
        }
    }

    fn key_file(&self) -> Option<&PathBuf> {
        self.api_key_file.as_ref().filter(|path| !path.as_os_str().is_empty())
    }

    /// The key, from the setting or its file.
    pub(super) fn resolved_key(&self, provider: &str) -> Result<Option<Secret>, Error> {
        match self.key_file() {
            _ if !self.api_key.is_empty() => Ok(Some(self.api_key.clone())),
            None => Ok(None),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Some(Secret::from(text.trim().to_owned()))),
                Err(error) => {
                    let reason = format!("cannot read api_key_file {}: {error}", path.display());
                    Err(fault(provider, &reason))
                }
            },
        }
    }

    /// The address that every route's path is put behind, without `/v1`.
    pub(super) fn root(&self, provider: &str, wire: Wire) -> Result<Url, Error> {
        let base = self.base_url(wire);
        let url: Url = base
            .strip_suffix("/v1")
            .unwrap_or(base)
            .parse()
            .map_err(|error| fault(provider, &format!("base_url {:?} is no URL: {error}", self.base_url)))?;
        match url.scheme() {
            "http" | "https" if url.username().is_empty() && url.password().is_none() => Ok(url),
            "http" | "https" => Err(fault(provider, "base_url must not contain a user or password")),
            _ => Err(fault(provider, "base_url must begin with http:// or https://")),
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

/// A fault of a provider's settings.
pub(super) fn fault(provider: &str, reason: &str) -> Error {
    Error::Settings {
        provider: provider.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::server::joined;
    use crate::model::wire::Route;
    use rstest::rstest;

    fn at(base_url: &str) -> ServerSettings {
        ServerSettings {
            base_url: base_url.to_owned(),
            ..ServerSettings::default()
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
        let root = at(base).root("anthropic", Wire::Anthropic).unwrap();
        assert_eq!(joined(&root, Route::Messages).as_str(), expected);
    }

    #[test]
    fn a_wrong_base_url_is_named() {
        for base in ["/", "ftp://example.com", "https://user:pw@example.com", "not a url"] {
            let error = at(base).root("anthropic", Wire::Anthropic).unwrap_err().to_string();
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

    #[test]
    fn a_key_or_a_server_of_ones_own_sets_a_provider_up() {
        assert!(!at("").is_set_up(Wire::OpenAi));
        assert!(!at("https://api.openai.com/v1").is_set_up(Wire::OpenAi));
        assert!(at("http://127.0.0.1:11434/v1").is_set_up(Wire::OpenAi));
        let keyed = ServerSettings {
            api_key: Secret::from("sk".to_owned()),
            ..ServerSettings::default()
        };
        assert!(keyed.is_set_up(Wire::Anthropic));
    }
}
