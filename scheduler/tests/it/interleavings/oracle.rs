//! What the pure state machine says: every change of a row must be a move that it allows, and allowed by who asked.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use common::ids::{JobId, TenantId, WorkerId};
use common::job::decision::{Decision, LOSSES_MAX};
use common::job::state::JobEvent;
use common::job::{Job, JobState, StateName};
use common::store::claim::Claimed;

/// What does not hold.
pub(crate) type Broken = String;

/// A job as it should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    tenant_id: TenantId,
    state: JobState,
    attempt: u32,
    losses: u32,
    is_cancel_asked: bool,
    has_key: bool,
    /// Postgres confirmed the attempt when its lease had passed, and its place may be another's.
    is_late: bool,
}

/// Every job that was accepted.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    jobs: BTreeMap<JobId, Expected>,
}

impl Oracle {
    pub(crate) fn accepted(&mut self, id: JobId, tenant_id: TenantId, state: JobState, has_key: bool) {
        let expected = Expected {
            tenant_id,
            state,
            attempt: 0,
            losses: 0,
            is_cancel_asked: false,
            has_key,
            is_late: false,
        };
        self.jobs.insert(id, expected);
    }

    pub(crate) fn ids(&self) -> Vec<JobId> {
        self.jobs.keys().copied().collect()
    }

    pub(crate) fn pick(&self, which: usize, wanted: impl Fn(&JobState) -> bool) -> Option<(TenantId, JobId)> {
        let fitting: Vec<_> = self.jobs.iter().filter(|(_, job)| wanted(&job.state)).collect();
        let (id, job) = fitting.get(which.checked_rem(fitting.len())?)?;
        Some((job.tenant_id, **id))
    }

    fn apply(&mut self, id: JobId, event: JobEvent, now: DateTime<Utc>) -> Result<StateName, Broken> {
        let job = self.jobs.get_mut(&id).ok_or_else(|| format!("nobody accepted {id}"))?;
        job.state = job.state.apply(event, now).map_err(|refused| refused.to_string())?;
        Ok(job.state.name())
    }

    pub(crate) fn claimed(
        &mut self,
        claimed: &Claimed,
        worker_id: WorkerId,
        is_late: bool,
        now: DateTime<Utc>,
    ) -> Result<(), Broken> {
        let (id, attempt) = (claimed.job.id, claimed.job.attempt);
        self.apply(id, JobEvent::Claimed { attempt, worker_id }, now)?;
        let job = self.jobs.get_mut(&id).unwrap();
        job.attempt += 1;
        job.is_late = is_late;
        ensure(job.attempt == attempt, || {
            format!("attempt {attempt} instead of {}", job.attempt)
        })
    }

    /// A worker heard that the attempt is not its own: it must be true.
    pub(crate) fn is_lost(&self, claimed: &Claimed, worker: WorkerId) -> Result<(), Broken> {
        ensure(!self.is_current(claimed, worker), || {
            format!("{} was taken from who holds it", claimed.job.id)
        })
    }

    fn is_current(&self, claimed: &Claimed, worker: WorkerId) -> bool {
        let fence = (claimed.job.attempt, worker);
        let state = self.jobs[&claimed.job.id].state;
        matches!(state, JobState::Running { attempt, worker_id, .. } if (attempt, worker_id) == fence)
    }

    /// Its worker found the lease alive, so that its place is its own.
    pub(crate) fn runs(&mut self, id: JobId) {
        self.jobs.get_mut(&id).unwrap().is_late = false;
    }

    /// Whether nobody has claimed the job since.
    pub(crate) fn is_last(&self, claimed: &Claimed) -> bool {
        self.jobs[&claimed.job.id].attempt == claimed.job.attempt
    }

    /// Whether what runs of a job now may run without a place.
    pub(crate) fn is_late(&self, id: &str) -> bool {
        let job = id.parse().ok().and_then(|id: JobId| self.jobs.get(&id));
        job.is_some_and(|job| job.is_late && matches!(job.state, JobState::Running { .. }))
    }

    /// Answers the state that the job is in afterwards.
    pub(crate) fn settled(
        &mut self,
        claimed: &Claimed,
        worker: WorkerId,
        decision: &Decision,
        committed: bool,
        now: DateTime<Utc>,
    ) -> Result<StateName, Broken> {
        let (id, attempt) = (claimed.job.id, claimed.job.attempt);
        let expected = self.jobs[&id];
        let is_current = self.is_current(claimed, worker);
        ensure(is_current == committed, || {
            format!("attempt {attempt} committed: {committed}, {:?}", expected.state)
        })?;
        if !committed {
            return Ok(expected.state.name());
        }
        let asked = expected.is_cancel_asked;
        let event = match decision {
            Decision::Succeed => JobEvent::Succeeded { attempt },
            Decision::Fail(_) => JobEvent::Failed { attempt },
            Decision::Cancel => JobEvent::Stopped { attempt },
            Decision::RetryAt(..) | Decision::GiveBack | Decision::Wait(_) if asked => JobEvent::Stopped { attempt },
            Decision::RetryAt(due_at, _) => JobEvent::RetryAt {
                attempt,
                due_at: *due_at,
            },
            Decision::GiveBack => JobEvent::GivenBack { attempt },
            Decision::Wait(wait) => JobEvent::Waits {
                attempt,
                deadline: wait.deadline,
            },
        };
        self.apply(id, event, now)
    }

    pub(crate) fn cancelled(&mut self, job: &Job, now: DateTime<Utc>) -> Result<(), Broken> {
        let expected = self.jobs.get_mut(&job.id).unwrap();
        if expected.state.is_terminal() {
            return Ok(());
        }
        expected.is_cancel_asked = true;
        if matches!(expected.state, JobState::Running { .. }) {
            return Ok(());
        }
        self.apply(job.id, JobEvent::Cancelled, now).map(drop)
    }

    pub(crate) fn resumed(&mut self, id: JobId, resumed: Option<&Job>, now: DateTime<Utc>) -> Result<(), Broken> {
        let is_waiting = matches!(self.jobs[&id].state, JobState::Waiting { .. });
        ensure(is_waiting == resumed.is_some(), || format!("resumed: {resumed:?}"))?;
        if is_waiting {
            self.apply(id, JobEvent::Resumed, now).map(drop)
        } else {
            Ok(())
        }
    }

    pub(crate) fn promoted(&mut self, rows: &[Job], now: DateTime<Utc>) -> Result<(), Broken> {
        for row in rows {
            let state = self.jobs[&row.id].state;
            if let JobState::Scheduled { due_at } | JobState::Retrying { due_at } = state
                && due_at <= now
            {
                self.apply(row.id, JobEvent::Promoted, now)?;
            }
        }
        Ok(())
    }

    /// `permissions` says until when a sandbox of each running job may run.
    pub(crate) fn reclaimed(
        &mut self,
        rows: &[Job],
        permissions: &BTreeMap<JobId, DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<(), Broken> {
        for row in rows {
            let expected = self.jobs[&row.id];
            let JobState::Running { attempt, .. } = expected.state else {
                continue;
            };
            if row.state.name() == StateName::Running {
                continue;
            }
            let allowed = permissions.get(&row.id).is_none_or(|until| *until <= now);
            ensure(allowed, || {
                format!("{} was taken over while its sandbox may run", row.id)
            })?;
            let event = if expected.is_cancel_asked {
                JobEvent::Stopped { attempt }
            } else if expected.losses + 1 >= LOSSES_MAX {
                JobEvent::Failed { attempt }
            } else {
                JobEvent::GivenBack { attempt }
            };
            self.apply(row.id, event, now)?;
            self.jobs.get_mut(&row.id).unwrap().losses += 1;
        }
        Ok(())
    }

    /// Whether every row is as expected.
    pub(crate) fn check(&self, rows: &[Job], limit: usize) -> Result<(), Broken> {
        ensure(rows.len() == self.jobs.len(), || "a job is lost".to_owned())?;
        let mut running = BTreeMap::<TenantId, usize>::new();
        for row in rows {
            let expected = self.jobs[&row.id];
            let same = match (expected.state, row.state) {
                (
                    JobState::Running { attempt, worker_id, .. },
                    JobState::Running {
                        attempt: a,
                        worker_id: w,
                        ..
                    },
                ) => (attempt, worker_id) == (a, w),
                (expected, row) => expected.name() == row.name(),
            };
            ensure(same, || {
                format!("{} is {:?} and should be {:?}", row.id, row.state, expected.state)
            })?;
            let counts = (row.attempt, row.losses) == (expected.attempt, expected.losses);
            ensure(counts, || {
                format!(
                    "{} has attempt {} and {} losses, not {expected:?}",
                    row.id, row.attempt, row.losses
                )
            })?;
            if expected.has_key && !expected.is_late && matches!(row.state, JobState::Running { .. }) {
                *running.entry(expected.tenant_id).or_default() += 1;
            }
        }
        ensure(running.values().all(|count| *count <= limit), || {
            format!("more than {limit} run with one key: {running:?}")
        })
    }

    pub(crate) fn are_all_over(&self) -> bool {
        self.jobs.values().all(|job| job.state.is_terminal())
    }

    pub(crate) fn waiting(&self) -> Vec<(TenantId, JobId)> {
        let waiting = self
            .jobs
            .iter()
            .filter(|(_, job)| matches!(job.state, JobState::Waiting { .. }));
        waiting.map(|(id, job)| (job.tenant_id, *id)).collect()
    }
}

pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(what()) }
}
