//! The task that tells Redis how calls ended, and keeps the places of those under way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::queue::{Admission, CallAsk, CallReport, PLACE_TTL, Queue};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

/// Reports that wait; one more is dropped and counted, and its place passes by itself.
const WAITING_MAX: usize = 4_096;

/// How long Redis is not asked again after it did not answer, so that calls do not wait for it one by one.
const AWAY: Duration = Duration::from_secs(2);

/// What is shared with the task.
#[derive(Debug)]
pub(super) struct Reports {
    queue: Queue,
    sender: mpsc::Sender<CallReport>,
    live: Arc<Live>,
    away_until: Mutex<Option<Instant>>,
    _task: Mutex<JoinSet<()>>,
}

/// Calls under way whose places are limited, and their accounts.
type Live = Mutex<BTreeMap<Uuid, String>>;

impl Reports {
    pub(super) fn start(queue: Queue) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let live = Arc::new(Live::default());
        let mut task = JoinSet::new();
        task.spawn(run(queue.clone(), receiver, Arc::clone(&live)));
        Self {
            queue,
            sender,
            live,
            away_until: Mutex::new(None),
            _task: Mutex::new(task),
        }
    }

    /// What Redis says; none when it says nothing.
    pub(super) async fn admit(&self, ask: &CallAsk<'_>) -> Option<Admission> {
        let is_away = |until: Option<Instant>| until.is_some_and(|until| Instant::now() < until);
        if is_away(*self.away_until.lock().unwrap_or_else(PoisonError::into_inner)) {
            return None;
        }
        match self.queue.admit_call(ask).await {
            Ok(admission) => Some(admission),
            Err(error) => {
                tracing::warn!(%error, account = ask.account, "a call of a model is admitted without asking");
                *self.away_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + AWAY);
                None
            }
        }
    }

    /// Renews the call's place until it is reported.
    pub(super) fn hold(&self, account: &str, call: Uuid) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.insert(call, account.to_owned());
    }

    pub(super) fn report(&self, report: CallReport) {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&report.call);
        if self.sender.try_send(report).is_err() {
            metrics::counter!("hothouse_model_reports_lost_total").increment(1);
        }
    }
}

async fn run(queue: Queue, mut reports: mpsc::Receiver<CallReport>, live: Arc<Live>) {
    let mut renewals = tokio::time::interval(PLACE_TTL / 3);
    loop {
        // Both are cancel-safe.
        tokio::select! {
            report = reports.recv() => match report {
                Some(report) => tell(&queue, &report).await,
                None => return,
            },
            _ = renewals.tick() => renew(&queue, &live).await,
        }
    }
}

async fn tell(queue: &Queue, report: &CallReport) {
    let (account, model) = (&report.account, &report.model);
    match queue.report_call(report).await {
        Ok(true) => {
            tracing::warn!(account, model, "calls keep failing: the circuit is open");
            metrics::counter!("hothouse_model_circuits_opened_total").increment(1);
        }
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, account, "nobody hears how a call ended"),
    }
    if let Some(pause) = report.pause {
        tracing::warn!(account, ?pause, "the provider wants its account left alone");
        metrics::counter!("hothouse_model_pauses_total").increment(1);
    }
}

async fn renew(queue: &Queue, live: &Live) {
    let mut accounts: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
    for (call, account) in &*live.lock().unwrap_or_else(PoisonError::into_inner) {
        accounts.entry(account.clone()).or_default().push(*call);
    }
    for (account, calls) in accounts {
        if let Err(error) = queue.renew_calls(&account, &calls).await {
            tracing::debug!(%error, account, "places are not renewed");
        }
    }
}
