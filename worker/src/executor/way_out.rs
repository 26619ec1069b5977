//! The way out of an attempt's sandbox: open while its work goes on, and written down.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::job::Job;
use common::job::event::EventBody;
use common::store::Store;
use common::store::egress::Decision;
use futures_util::FutureExt;
use hothouse_protocol::GATEWAY_PORT;
use tokio::sync::Mutex;

use super::Context;
use crate::egress::{Ledger, Policy, Proxy, Row, Settings};
use crate::events::{Say, Sink};
use crate::gateway::Gateway;
use crate::sandbox::{self, Input, RunSpec, Sandbox, Tunnel};

/// Decisions of this long go to Postgres together.
const TOGETHER: Duration = Duration::from_millis(500);

/// How long the end of an attempt waits for its decisions to be written.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Refusals that an attempt's log tells of; all of them are in its decisions.
const TOLD_MAX: u32 = 20;

/// Where programs find the operator's certificates.
const CERTIFICATES: &str = "/tmp/.hothouse-certificates.pem";

/// What the operator gives every way out.
#[derive(Clone, Debug, Default)]
pub struct Means {
    /// Bounds.
    pub settings: Settings,
    /// Certificates that programs should trust, PEM; empty for those of the image.
    pub certificates: Bytes,
}

/// One attempt's way out.
#[derive(Debug)]
pub(super) struct WayOut {
    means: Arc<Means>,
    ledger: Ledger,
    store: Store,
    job: Job,
    events: Sink,
    told: AtomicU32,
    unwritten: Mutex<BTreeMap<u32, Row>>,
}

impl WayOut {
    pub(super) fn new(context: &Context) -> Self {
        let means = Arc::clone(&context.machine.egress);
        Self {
            ledger: Ledger::new(&means.settings, &context.clock),
            means,
            store: context.machine.store.clone(),
            job: context.job.clone(),
            events: context.events.clone(),
            told: AtomicU32::new(0),
            unwritten: Mutex::default(),
        }
    }

    /// Does `work` with the way out open for what `policy` allows. All connections end with it.
    pub(super) async fn during<T>(&self, sandbox: &Sandbox, policy: Policy, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.serve(sandbox, policy) => match never {},
        }
    }

    /// Keeps the way out open until this is dropped.
    pub(super) async fn serve(&self, sandbox: &Sandbox, policy: Policy) -> Infallible {
        self.serve_both(sandbox, policy, None).await
    }

    /// As [`Self::serve`], with the gateway to models beside it.
    pub(super) async fn serve_both(&self, sandbox: &Sandbox, policy: Policy, gateway: Option<&Gateway>) -> Infallible {
        let proxy = Proxy {
            settings: &self.means.settings,
            policy,
            ledger: &self.ledger,
        };
        let connection = |tunnel: Tunnel| match gateway {
            Some(gateway) if tunnel.port == GATEWAY_PORT => gateway.connection(tunnel).boxed(),
            _ => proxy.connection(tunnel).boxed(),
        };
        let tunnels = async {
            match sandbox.tunnels() {
                Some(tunnels) => tunnels.serve(connection).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            never = tunnels => never,
            never = self.write_as_it_comes() => never,
        }
    }

    /// Puts the operator's certificates where [`variables`] says, when there are some.
    pub(super) async fn put_certificates(&self, sandbox: &Sandbox) -> Result<(), sandbox::Error> {
        if self.means.certificates.is_empty() {
            return Ok(());
        }
        let spec = RunSpec {
            stdin: Input::Bytes(self.means.certificates.clone()),
            ..RunSpec::new(["/bin/sh", "-c", "cat >\"$1\"", "sh", CERTIFICATES])
        };
        sandbox.run(spec).await?.wait().await.map(drop)
    }

    /// Writes what is left.
    pub(super) async fn end(&self) {
        if tokio::time::timeout(LAST_WRITE, self.write()).await.is_err() {
            tracing::warn!(job_id = %self.job.id, "egress decisions were not written in time");
        }
    }

    #[expect(clippy::infinite_loop, reason = "it goes on until it is dropped, as its type says")]
    async fn write_as_it_comes(&self) -> Infallible {
        loop {
            self.ledger.changed().await;
            tokio::time::sleep(TOGETHER).await;
            self.write().await;
        }
    }

    /// Writes new decisions, and those that Postgres did not take before. Cancel-safe: what is not written stays.
    async fn write(&self) {
        let mut unwritten = self.unwritten.lock().await;
        for row in self.ledger.take_rows() {
            self.tell(&row);
            unwritten.insert(row.seq, row);
        }
        if unwritten.is_empty() {
            return;
        }
        let decisions: Vec<Decision> = unwritten.values().map(|row| decision(self.job.attempt, row)).collect();
        match self.store.insert_egress(&self.job, &decisions).await {
            Ok(()) => unwritten.clear(),
            Err(error) => tracing::warn!(%error, job_id = %self.job.id, "egress decisions wait for Postgres"),
        }
    }

    fn tell(&self, row: &Row) {
        let Some(refusal) = row.refusal else { return };
        let told = self.told.fetch_add(1, Ordering::Relaxed);
        let detail = match &row.destination {
            _ if told > TOLD_MAX => return,
            _ if told == TOLD_MAX => "and more: see the job's egress".to_owned(),
            Some(destination) => format!("{destination}: {refusal}"),
            None => refusal.to_string(),
        };
        let phase = if row.is_allowed { "egress_cut" } else { "egress_refused" };
        self.events.say(EventBody::Status {
            phase: phase.to_owned(),
            detail: Some(detail),
        });
    }
}

/// The variables by which programs find their way out. Those that name the operator's certificates are left out where there
/// is none, for nobody puts the file there then, and programs fail or complain without it.
pub(super) fn variables(means: &Means, has_way_out: bool) -> Vec<(String, String)> {
    let mut variables = crate::egress::variables();
    if has_way_out && !means.certificates.is_empty() {
        let names = [
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "NODE_EXTRA_CA_CERTS",
            "PIP_CERT",
        ];
        variables.extend(names.map(|name| (name.to_owned(), CERTIFICATES.to_owned())));
    }
    variables
}

fn decision(attempt: u32, row: &Row) -> Decision {
    Decision {
        attempt,
        seq: row.seq,
        at: row.at,
        method: row.method.clone(),
        host: row.destination.as_ref().map(|destination| destination.host.to_string()),
        port: row.destination.as_ref().map(|destination| destination.port),
        address: row.address.map(|address| address.to_string()),
        is_allowed: row.is_allowed,
        reason: row.refusal.map(|refusal| refusal.code().to_owned()),
        sent_bytes: row.sent_bytes,
        received_bytes: row.received_bytes,
        duration: row.duration,
    }
}
