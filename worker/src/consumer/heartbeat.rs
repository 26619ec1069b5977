//! Heartbeats: extending the leases of held attempts, and hearing which of them are lost.
//!
//! | Redis says | what follows |
//! |---|---|
//! | OK | the sandbox may run on |
//! | LOST | the attempt stops and writes nothing |
//! | PASSED, UNKNOWN | Redis was away or wiped: the worker says in Postgres that it lives, and registers again what is still its own there; the rest is lost |
//! | nothing | the worker says in Postgres that it lives; what is still its own there runs on |
//!
//! Whatever a renewal allows is counted from the moment before it was asked for: the answer may come late, to a process
//! that was stopped meanwhile, and the lease began when the question was heard.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::TimeDelta;
use common::clock::Clock;
use common::config::Leases;
use common::health::Pulse;
use common::ids::WorkerId;
use common::queue::{Beat, Dispatch, Queue, Shard};
use common::store::Store;
use futures_util::future::join_all;
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
    /// Owes beats that were heard.
    pub pulse: Pulse,
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
        // At once: a Redis that stands still costs each of them a while, and all of them have the same time left.
        let beats = by_shard
            .iter()
            .map(|(shard, attempts)| self.beat_shard(*shard, attempts, alive));
        let all_renewed = join_all(beats).await.into_iter().all(|renewed| renewed);
        self.held.set_unheard(!all_renewed);
        if all_renewed {
            *renewed = begun;
            self.pulse.progress();
        }
    }

    async fn beat_shard(&self, shard: Shard, attempts: &[HeldAttempt], alive: bool) -> bool {
        let fences: Vec<_> = attempts
            .iter()
            .map(|attempt| (attempt.job_id, attempt.attempt))
            .collect();
        let asked = Instant::now();
        // A Redis that stands still must not use up the time that the sandboxes have left.
        let beaten = timeout(
            self.leases.heartbeat / 2,
            self.queue.heartbeat(shard, self.worker_id, &fences),
        );
        let beats = match beaten.await {
            Ok(Ok(beats)) => beats,
            Ok(Err(error)) => {
                tracing::warn!(%error, "heartbeat failed: saying in Postgres that this worker lives");
                return self.go_on_without_redis(attempts, alive).await;
            }
            Err(_) => {
                tracing::warn!("Redis does not answer: saying in Postgres that this worker lives");
                return self.go_on_without_redis(attempts, alive).await;
            }
        };
        let of = |wanted: &[Beat]| -> Vec<HeldAttempt> {
            let pairs = attempts.iter().zip(&beats);
            pairs
                .filter(|(_, beat)| wanted.contains(beat))
                .map(|(attempt, _)| *attempt)
                .collect()
        };
        self.held.renew(&of(&[Beat::Ok]), asked + self.leases.run_on);
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
        let asked = Instant::now();
        match self.say_alive(&unsure).await {
            Some(own) => self.register(shard, &own, asked).await,
            None => false,
        }
    }

    /// Redis is away: as long as Postgres hears of this worker, nobody takes its attempts.
    async fn go_on_without_redis(&self, attempts: &[HeldAttempt], alive: bool) -> bool {
        alive && self.say_alive(attempts).await.is_some()
    }

    /// Says in Postgres that this worker lives, and then looks which of these attempts are still its own: nobody takes those
    /// over within a lease time, so they run on. The others are lost. `None` when Postgres does not answer.
    async fn say_alive(&self, attempts: &[HeldAttempt]) -> Option<Vec<HeldAttempt>> {
        let asked = Instant::now();
        let until = self.clock.now() + TimeDelta::from_std(self.leases.ttl).unwrap_or_default();
        let fences: Vec<_> = attempts
            .iter()
            .map(|attempt| (attempt.job_id, attempt.attempt))
            .collect();
        let said = async {
            self.store.worker_alive_until(self.worker_id, until).await?;
            self.store.held(self.worker_id, &fences).await
        };
        match said.await {
            Ok(own) => {
                let (own, others): (Vec<HeldAttempt>, Vec<HeldAttempt>) = attempts
                    .iter()
                    .copied()
                    .partition(|attempt| own.contains(&attempt.job_id));
                for attempt in others {
                    // Taken away, or settled between the list and the answer; either way nothing more may be written.
                    tracing::debug!(job_id = %attempt.job_id, "not confirmed by Postgres");
                    self.held.stop(attempt.job_id, Stop::Lost);
                }
                self.held.renew(&own, asked + self.leases.run_on);
                Some(own)
            }
            Err(error) => {
                tracing::warn!(%error, "neither Redis nor Postgres hears that this worker lives");
                None
            }
        }
    }

    /// Registers attempts that Postgres confirmed after this worker had said, at `asked` or later, that it lives. When that
    /// is too long ago they may be somebody else's by now, and Redis may not know it: then they are lost.
    async fn register(&self, shard: Shard, own: &[HeldAttempt], asked: Instant) -> bool {
        let ids: Vec<_> = own.iter().map(|attempt| attempt.job_id).collect();
        let registered = async {
            let jobs = self.store.jobs(&ids).await?;
            let running: Vec<Dispatch> = jobs.iter().map(Dispatch::from_running).collect();
            let accepted = self.queue.register(shard, self.worker_id, &running).await?;
            let accepted = jobs.iter().zip(accepted).filter(|(_, accepted)| *accepted);
            let ids: Vec<_> = accepted.map(|(job, _)| job.id).collect();
            // What was cancelled while Redis could not say so.
            for job_id in self.store.cancels_requested(&ids).await? {
                self.held.stop(job_id, Stop::Cancel);
            }
            anyhow::Ok(ids)
        };
        match registered.await {
            Ok(_) if asked.elapsed() >= self.leases.run_on => {
                for attempt in own {
                    self.lose(attempt);
                }
                true
            }
            Ok(accepted) => {
                if !accepted.is_empty() {
                    tracing::info!(registered = accepted.len(), "registered again");
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
