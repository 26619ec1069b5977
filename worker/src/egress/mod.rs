//! The way out of a sandbox.
//!
//! A sandbox has no network. Its init listens at a loopback port and hands each connection to the worker as a tunnel;
//! here it is an HTTP proxy, which knows `CONNECT` for TLS and plain HTTP, and decides. A connection goes on when
//! - the environment's list and the job's list both name its host and port ([`policy`]),
//! - every address that its name stands for is public, or opened by the operator ([`address`]); the address that was
//!   checked is the one that is dialled ([`dial`]),
//! - TLS, or the Host header, names the same host as the request ([`client_hello`], [`request`]),
//! - the attempt's caps have room ([`ledger`]).
//!
//! # Invariants
//! - No byte of a program reaches a server before all of that is decided, and none that follows a plain request's body
//!   ever does.
//! - No tunnel outlives [`Proxy::serve`], which is part of its attempt: dropping it closes all of them.
//! - Every decision has a row in the [`Ledger`], up to its cap.
//!
//! # Not here
//! Whether what goes through TLS is what its name says: nothing is intercepted, so an allowed host that serves for others
//! can be used to reach them.

mod address;
mod client_hello;
mod dial;
mod ledger;
mod policy;
mod proxy;
mod refusal;
mod relay;
mod request;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use hothouse_protocol::PROXY_PORT;
use serde::{Deserialize, Serialize};

pub use address::{Network, NotANetwork};
pub use ledger::{Ledger, Row};
pub use policy::Policy;
pub use refusal::Refusal;

use crate::sandbox::{Sandbox, Tunnel};

/// `[egress]`: what every sandbox's way out is bounded by.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Networks that may be reached although they are not of the public Internet.
    pub private: Vec<Network>,
    /// Addresses of names that are not asked of the system.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Connections of one job at once.
    pub connections_max: u32,
    /// Connections of one attempt in all.
    pub connections_total_max: u32,
    /// New connections of one job in a second.
    pub connections_per_second: u32,
    /// Bytes of one attempt, both ways together.
    pub bytes_max: u64,
    /// How long finding and reaching a host may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long a request's head, or the begin of TLS, may take to come.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// How long a connection may stand still.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// A file of certificates (PEM) that programs should trust; empty leaves them those of the image.
    pub certificates: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            private: Vec::new(),
            hosts: BTreeMap::new(),
            connections_max: 32,
            connections_total_max: 1_000,
            connections_per_second: 50,
            bytes_max: 1 << 30,
            connect_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(2),
            certificates: PathBuf::new(),
        }
    }
}

impl Settings {
    /// What is wrong with them, as a sentence.
    pub fn fault(&self) -> Option<&'static str> {
        if self.connections_max == 0 || self.connections_total_max == 0 || self.connections_per_second == 0 {
            return Some("egress.connections_*: each is at least 1; an empty list of an environment closes it");
        }
        let times = [self.connect_timeout, self.head_timeout, self.idle_timeout];
        if times.iter().any(Duration::is_zero) {
            return Some("egress: its timeouts are longer than nothing");
        }
        None
    }
}

/// The way out of one sandbox, for as long as one policy holds.
#[derive(Debug)]
pub struct Proxy<'a> {
    /// The operator's bounds.
    pub settings: &'a Settings,
    /// What may be reached.
    pub policy: Policy,
    /// Where it is written down.
    pub ledger: &'a Ledger,
}

impl Proxy<'_> {
    /// Serves the tunnels of a sandbox until it is dropped, which closes them.
    pub async fn serve(&self, sandbox: &Sandbox) -> Infallible {
        match sandbox.tunnels() {
            Some(tunnels) => tunnels.serve(|tunnel| self.connection(tunnel).boxed()).await,
            None => std::future::pending().await,
        }
    }

    /// Serves one connection to its end. One to another port than the proxy's is closed.
    pub async fn connection(&self, tunnel: Tunnel) {
        if tunnel.port == PROXY_PORT {
            let rules = proxy::Rules {
                settings: self.settings,
                policy: &self.policy,
            };
            proxy::serve(tunnel, rules, self.ledger).await;
        }
    }

    /// Does `work` with the way out open.
    pub async fn during<T>(&self, sandbox: &Sandbox, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.serve(sandbox) => match never {},
        }
    }
}

/// The variables by which programs find the proxy.
pub fn variables() -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    let to_proxy =
        ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"].map(|name| (name.to_owned(), proxy.clone()));
    let not = ["NO_PROXY", "no_proxy"].map(|name| (name.to_owned(), "localhost,127.0.0.1,::1".to_owned()));
    to_proxy.into_iter().chain(not).collect()
}
