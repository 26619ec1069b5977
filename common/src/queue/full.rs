//! Backlogs that were full a moment ago: of a flood, what Redis would leave in Postgres anyhow is not offered to it.
//!
//! # Invariant
//! Only what comes after a job that was spilled is left out: redispatch brings in what is left of a lane in `spilled`, and of
//! a tenant in `crowded`. Where it has just said that nothing is, its look at recent rows finds the job within two seconds,
//! as one that nobody told Redis of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Dispatch, Dispatched};
use crate::ids::TenantId;

/// How long an answer is believed: long beside the time between two inserts of a flood, short beside that in which
/// redispatch finds what was left out wrongly.
const BELIEVED: Duration = Duration::from_millis(100);

/// What a dispatcher remembers of the answers that it got.
#[derive(Debug, Default)]
pub struct Full {
    /// By tenant and lane.
    backlogs: BTreeMap<TenantId, BTreeMap<String, Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The score of a job for which there was no room.
    score: i64,
    at: Instant,
}

impl Full {
    /// Whether there was no room for a job that would come before this one. Jobs that were dispatched before are offered
    /// always: what Redis knows of them changes.
    pub fn leaves_out(&self, job: &Dispatch, now: Instant) -> bool {
        let seen = self.backlogs.get(&job.tenant_id).and_then(|lanes| lanes.get(&job.lane));
        job.attempt == 1 && seen.is_some_and(|seen| is_fresh(seen, now) && seen.score <= job.score)
    }

    /// Takes note of what became of jobs, in their order.
    pub fn note(&mut self, jobs: &[Dispatch], answers: &[Dispatched], now: Instant) {
        for lanes in self.backlogs.values_mut() {
            lanes.retain(|_, seen| is_fresh(seen, now));
        }
        self.backlogs.retain(|_, lanes| !lanes.is_empty());
        for (job, answer) in jobs.iter().zip(answers) {
            match answer {
                Dispatched::Spilled => self.spilled(job, now),
                Dispatched::Added => self.added(job),
                Dispatched::Known | Dispatched::InLine => {}
            }
        }
    }

    fn spilled(&mut self, job: &Dispatch, now: Instant) {
        let lanes = self.backlogs.entry(job.tenant_id).or_default();
        if let Some(seen) = lanes.get_mut(&job.lane) {
            seen.score = seen.score.min(job.score);
            seen.at = now;
        } else {
            let seen = Seen {
                score: job.score,
                at: now,
            };
            lanes.insert(job.lane.clone(), seen);
        }
    }

    fn added(&mut self, job: &Dispatch) {
        if let Some(lanes) = self.backlogs.get_mut(&job.tenant_id) {
            lanes.remove(&job.lane);
        }
    }
}

fn is_fresh(seen: &Seen, now: Instant) -> bool {
    now.saturating_duration_since(seen.at) < BELIEVED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::JobId;

    fn job(tenant_id: TenantId, lane: &str, score: i64) -> Dispatch {
        Dispatch {
            job_id: JobId::new(),
            tenant_id,
            attempt: 1,
            lane: lane.to_owned(),
            level: 5,
            holds: Vec::new(),
            score,
        }
    }

    #[test]
    fn what_comes_after_a_spilled_job_of_its_backlog_is_left_out_for_a_moment() {
        let (tenant, other, now) = (TenantId::new(), TenantId::new(), Instant::now());
        let mut full = Full::default();
        let spilled = job(tenant, "q/light", 7);
        assert!(!full.leaves_out(&spilled, now), "nothing is known yet");
        full.note(std::slice::from_ref(&spilled), &[Dispatched::Spilled], now);
        assert!(full.leaves_out(&job(tenant, "q/light", 7), now));
        assert!(full.leaves_out(&job(tenant, "q/light", 8), now));
        assert!(
            !full.leaves_out(&job(tenant, "q/light", 6), now),
            "it may displace another"
        );
        assert!(!full.leaves_out(&job(tenant, "p/light", 8), now));
        assert!(!full.leaves_out(&job(other, "q/light", 8), now));
        assert!(!full.leaves_out(&job(tenant, "q/light", 8), now + BELIEVED));
        let again = Dispatch {
            attempt: 2,
            ..job(tenant, "q/light", 8)
        };
        assert!(!full.leaves_out(&again, now), "Redis may know it as deferred");
    }

    #[test]
    fn an_added_job_says_that_there_is_room_again() {
        let (tenant, now) = (TenantId::new(), Instant::now());
        let mut full = Full::default();
        let jobs = [job(tenant, "q/light", 7), job(tenant, "q/light", 6)];
        full.note(&jobs, &[Dispatched::Spilled, Dispatched::Spilled], now);
        assert!(
            full.leaves_out(&job(tenant, "q/light", 6), now),
            "the first that stayed counts"
        );
        full.note(&jobs[..1], &[Dispatched::Added], now);
        assert!(!full.leaves_out(&job(tenant, "q/light", 8), now));
    }

    #[test]
    fn what_is_stale_is_forgotten() {
        let now = Instant::now();
        let mut full = Full::default();
        full.note(&[job(TenantId::new(), "q/light", 7)], &[Dispatched::Spilled], now);
        full.note(&[], &[], now + BELIEVED);
        assert!(full.backlogs.is_empty());
    }
}
