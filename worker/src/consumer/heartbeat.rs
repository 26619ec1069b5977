//! Heartbeats: extending the leases of held attempts, and hearing which of them are lost.
//!
//! | Redis says | what follows |
//! |---|---|
//! | OK | the sandbox may run on |
//! | LOST | the attempt stops and writes nothing |
//! | PASSED, UNKNOWN | Redis was away or wiped: Postgres confirms the attempt and it registers again, else it is lost |
//! | nothing | the worker says in Postgres that it lives; sandboxes run on while Postgres has heard that |

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::TimeDelta;
use common::clock::Clock;
use common::config::Leases;
use common::ids::WorkerId;
use common::queue::{Beat, Dispatch, Queue, Shard};
use common::store::Store;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::held::{Held, HeldAttempt, Stop};

/// The loop's parts.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Who.
    pub worker_id: WorkerId,
    /// The leases.
    pub queue: Queue,
    /// The truth.
    pub store: Store,
    /// What is held.
    pub held: Held,
    /// Times.
    pub leases: Leases,
    /// For what is written to Postgres.
    pub clock: Clock,
}

impl Heartbeat {
    /// Beats until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.leases.heartbeat) => {}
            }
            self.beat(&mut renewed).await;
        }
    }

    /// Beats once for everything that is held. `renewed` is when the leases were last renewed.
    pub async fn beat(&self, renewed: &mut Instant) {
        let begun = Instant::now();
        // Between two renewals a lease must not have passed, or somebody else may have begun.
        let alive = renewed.elapsed() < self.leases.ttl;
        let mut by_shard: BTreeMap<Shard, Vec<HeldAttempt>> = BTreeMap::new();
        for attempt in self.held.all() {
            by_shard
                .entry(self.queue.shard_of(attempt.tenant_id))
                .or_default()
                .push(attempt);
        }
        let mut all_renewed = true;
        for (shard, attempts) in by_shard {
            all_renewed &= self.beat_shard(shard, &attempts, alive).await;
        }
        self.held.set_unheard(!all_renewed);
        if all_renewed {
            *renewed = begun;
        }
    }

    async fn beat_shard(&self, shard: Shard, attempts: &[HeldAttempt], alive: bool) -> bool {
        let fences: Vec<_> = attempts
            .iter()
            .map(|attempt| (attempt.job_id, attempt.attempt))
            .collect();
        // A Redis that stands still must not use up the time that the sandboxes have left.
        let beaten = timeout(
            self.leases.heartbeat / 2,
            self.queue.heartbeat(shard, self.worker_id, &fences),
        );
        let beats = match beaten.await {
            Ok(Ok(beats)) => beats,
            Ok(Err(error)) => {
                tracing::warn!(%error, "heartbeat failed: saying in Postgres that this worker lives");
                return self.say_alive(attempts, alive).await;
            }
            Err(_) => {
                tracing::warn!("Redis does not answer: saying in Postgres that this worker lives");
                return self.say_alive(attempts, alive).await;
            }
        };
        let of = |wanted: &[Beat]| -> Vec<HeldAttempt> {
            let pairs = attempts.iter().zip(&beats);
            pairs
                .filter(|(_, beat)| wanted.contains(beat))
                .map(|(attempt, _)| *attempt)
                .collect()
        };
        self.held.renew(&of(&[Beat::Ok]), self.leases.run_on);
        for attempt in of(&[Beat::Lost]) {
            self.lose(&attempt);
        }
        let unsure = of(&[Beat::Passed, Beat::Unknown]);
        if unsure.is_empty() {
            return true;
        }
        if !alive {
            for attempt in &unsure {
                self.lose(attempt);
            }
            return true;
        }
        self.register(shard, &unsure).await
    }

    /// Redis is away: as long as Postgres hears of this worker, nobody takes its attempts.
    async fn say_alive(&self, attempts: &[HeldAttempt], alive: bool) -> bool {
        if !alive {
            return false;
        }
        let until = self.clock.now() + TimeDelta::from_std(self.leases.ttl).unwrap_or_default();
        match self.store.worker_alive_until(self.worker_id, until).await {
            Ok(()) => {
                self.held.renew(attempts, self.leases.run_on);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "neither Redis nor Postgres hears that this worker lives");
                false
            }
        }
    }

    async fn register(&self, shard: Shard, unsure: &[HeldAttempt]) -> bool {
        let fences: Vec<_> = unsure.iter().map(|attempt| (attempt.job_id, attempt.attempt)).collect();
        let registered = async {
            let confirmed = self.store.held(self.worker_id, &fences).await?;
            let jobs = self.store.jobs(&confirmed).await?;
            let running: Vec<Dispatch> = jobs.iter().map(Dispatch::from_running).collect();
            let accepted = self.queue.register(shard, self.worker_id, &running).await?;
            let accepted = jobs.iter().zip(accepted).filter(|(_, accepted)| *accepted);
            let ids: Vec<_> = accepted.map(|(job, _)| job.id).collect();
            // What was cancelled while Redis could not say so.
            for job_id in self.store.cancels_requested(&ids).await? {
                self.held.stop(job_id, Stop::Cancel);
            }
            anyhow::Ok((confirmed, ids))
        };
        match registered.await {
            Ok((confirmed, accepted)) => {
                for attempt in unsure.iter().filter(|attempt| !confirmed.contains(&attempt.job_id)) {
                    // Taken away, or settled between the list and the answer; either way nothing more may be written.
                    tracing::debug!(job_id = %attempt.job_id, "not confirmed by Postgres");
                    self.held.stop(attempt.job_id, Stop::Lost);
                }
                let kept: Vec<_> = unsure
                    .iter()
                    .filter(|a| accepted.contains(&a.job_id))
                    .copied()
                    .collect();
                self.held.renew(&kept, self.leases.run_on);
                if !kept.is_empty() {
                    tracing::info!(registered = kept.len(), "registered again");
                }
                true
            }
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "cannot register again yet");
                false
            }
        }
    }

    fn lose(&self, attempt: &HeldAttempt) {
        metrics::counter!("hothouse_leases_lost_total").increment(1);
        tracing::warn!(job_id = %attempt.job_id, attempt = attempt.attempt, "lease lost");
        self.held.stop(attempt.job_id, Stop::Lost);
    }
}
