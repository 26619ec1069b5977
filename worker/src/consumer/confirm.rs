//! What follows a handout: Postgres has the last word on each of its claims.
//!
//! Its answer may come when the leases have passed. Then the leader may have dropped them, and given their places to others,
//! or taken the attempts over, and whoever came next may have ended the job. So a late one begins only if its lease still
//! lives; else it is given back, which changes nothing where it is another's by now.

use std::collections::HashSet;
use std::iter;
use std::time::Instant;

use common::ids::JobId;
use common::job::{Job, JobState};
use common::queue::{Beat, Shard};
use common::store::claim::{Claim, Claimed};
use common::turn;

use super::Consumer;
use super::doubt::Unheard;
use super::held::HeldAttempt;
use crate::attempt::Room;

impl Consumer {
    /// Takes the attempts in Postgres, and starts those that are this worker's.
    pub(super) async fn confirm(
        &self,
        shard: Shard,
        claims: Vec<Claim>,
        asked: Instant,
        room: Vec<Room>,
    ) -> anyhow::Result<()> {
        if asked.elapsed() >= self.queue.lease_ttl() {
            anyhow::bail!("the claims were answered when their leases had passed");
        }
        // After an error the rows may be taken or not, so the leases are not dropped: what was taken is given back when Postgres
        // answers again, and of the rest they pass.
        let now = self.attempts.clock().now();
        let claimed = self.store.claim(self.worker_id, &claims, now).await;
        let claimed = claimed.inspect_err(|_away| {
            let unheard = claims.iter().map(|claim| Unheard { claim: *claim, at: now });
            self.doubt.begin(unheard);
        })?;
        metrics::counter!("hothouse_claims_total").increment(claimed.len() as u64);
        let taken: HashSet<JobId> = claimed.iter().map(|claimed| claimed.job.id).collect();
        self.begin(shard, claimed, asked, room).await;
        self.refuse(shard, &claims, &taken, asked).await;
        // The turn before one of them may have ended just now, and whoever ended it found this one claimed.
        let turns = claims
            .iter()
            .filter(|claim| claim.is_turn && !taken.contains(&claim.job_id));
        let turns: Vec<JobId> = turns.map(|claim| claim.job_id).collect();
        turn::dispatch_next(&self.store, &self.queue, &turns).await;
        Ok(())
    }

    /// Gives back what Postgres confirmed without this worker's hearing of it: nothing of it has begun, and it should not cost
    /// its job a loss. What it comes to confirm after this is found by reclaim.
    pub(super) async fn give_back_unheard(&self) {
        let claims = self.doubt.take();
        if claims.is_empty() {
            return;
        }
        let ids: Vec<JobId> = claims.iter().map(|one| one.claim.job_id).collect();
        let jobs = match self.store.jobs(&ids).await {
            Ok(jobs) => jobs,
            Err(error) => {
                tracing::debug!(%error, "claims stay in doubt");
                return self.doubt.begin(claims);
            }
        };
        let is_unheard = |job: &Job| {
            matches!(job.state, JobState::Running { worker_id, .. } if worker_id == self.worker_id)
                && claims.iter().any(|one| is_by(one, job))
        };
        for job in jobs.into_iter().filter(is_unheard) {
            tracing::warn!(job_id = %job.id, "Postgres took it for this worker, which did not hear of it: giving it back");
            self.attempts.give_back_unheard(job);
        }
    }

    /// Starts what Postgres confirmed, or gives it back.
    async fn begin(&self, shard: Shard, claimed: Vec<Claimed>, mut asked: Instant, mut room: Vec<Room>) {
        let held = |claimed: &Claimed| HeldAttempt {
            job_id: claimed.job.id,
            attempt: claimed.job.attempt,
            tenant_id: claimed.job.tenant_id,
        };
        let mut gone = HashSet::new();
        if !claimed.is_empty() && self.is_late(asked) {
            // What it renews is counted from now.
            asked = Instant::now();
            let attempts = claimed.iter().map(held).collect();
            gone = self.gone(shard, attempts).await;
        }
        for claimed in claimed {
            let Some(room) = room.pop() else { break };
            let held = held(&claimed);
            if gone.contains(&held) {
                self.attempts.give_back(claimed, held, room);
            } else {
                self.attempts.spawn(claimed, held, asked, room);
            }
        }
    }

    /// Whether Postgres took so long that leases from then may pass before their sandboxes end.
    fn is_late(&self, asked: Instant) -> bool {
        asked.elapsed() >= self.attempts.run_on()
    }

    /// Renews the leases of what was confirmed late. Answers whose live no more, or nobody can say.
    async fn gone(&self, shard: Shard, attempts: Vec<HeldAttempt>) -> HashSet<HeldAttempt> {
        let fences: Vec<_> = attempts.iter().map(|one| (one.job_id, one.attempt)).collect();
        let beats = self.queue.heartbeat(shard, self.worker_id, &fences).await;
        let beats = beats.unwrap_or_else(|error| {
            tracing::debug!(%error, "what was confirmed late is given back");
            Vec::new()
        });
        let lives = beats
            .into_iter()
            .map(|beat| beat == Beat::Ok)
            .chain(iter::repeat(false));
        let confirmed = attempts.len();
        let gone: HashSet<HeldAttempt> = attempts
            .into_iter()
            .zip(lives)
            .filter(|(_, lives)| !lives)
            .map(|(attempt, _)| attempt)
            .collect();
        let given_back = gone.len();
        tracing::warn!(
            confirmed,
            given_back,
            "Postgres took about as long as a lease to confirm a claim"
        );
        gone
    }

    /// Forgets the claims that Postgres refused, so that nothing waits for their leases.
    async fn refuse(&self, shard: Shard, claims: &[Claim], taken: &HashSet<JobId>, asked: Instant) {
        let refused = claims.iter().map(|claim| (claim.job_id, claim.attempt));
        let refused = self
            .not_its_own(refused.filter(|(id, _)| !taken.contains(id)).collect())
            .await;
        // Late, one that lives may be that of a later handout, on which Postgres has not had its word yet. Asked anew: time
        // has passed.
        let dropped = if self.is_late(asked) {
            self.queue.drop_passed(shard, self.worker_id, &refused).await
        } else {
            self.queue.drop_claims(shard, self.worker_id, &refused).await
        };
        if let Err(error) = dropped {
            tracing::debug!(%error, "unconfirmed claims pass by themselves");
        }
    }

    /// Of refused claims those that are not this worker's through another handout: one that was on its way for so long that
    /// its lease was dropped, and the job claimed once more. None where nobody can say.
    async fn not_its_own(&self, refused: Vec<(JobId, u32)>) -> Vec<(JobId, u32)> {
        if refused.is_empty() {
            return refused;
        }
        match self.store.held(self.worker_id, &refused).await {
            Ok(own) => refused.into_iter().filter(|(id, _)| !own.contains(id)).collect(),
            Err(error) => {
                tracing::debug!(%error, "refused claims pass by themselves");
                Vec::new()
            }
        }
    }
}

/// Whether it is this claim by which the job runs. Postgres keeps microseconds.
fn is_by(Unheard { claim, at }: &Unheard, job: &Job) -> bool {
    let started_at = job.started_at.map(|at| at.timestamp_micros());
    (claim.job_id, claim.attempt) == (job.id, job.attempt) && started_at == Some(at.timestamp_micros())
}
