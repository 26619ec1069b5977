//! Who holds a sandbox that is not on the shelf. Each holder counts its sandbox in one phase; dropping it counts the
//! sandbox out, so that no path, not even a panic, leaves a place taken.

use std::sync::Arc;

use super::plan::Counts;
use super::shelf::{Shelf, Warm};

/// Where a sandbox is when it is not warm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Creating,
    Leased,
    Retiring,
}

impl Phase {
    pub(super) fn of(self, counts: &mut Counts) -> &mut u32 {
        match self {
            Self::Creating => &mut counts.creating,
            Self::Leased => &mut counts.leased,
            Self::Retiring => &mut counts.retiring,
        }
    }
}

#[derive(Debug)]
struct Held {
    shelf: Arc<Shelf>,
    phase: Phase,
}

impl Held {
    /// For the shelf itself, which has its counts locked.
    fn counted(shelf: &Arc<Shelf>, counts: &mut Counts, phase: Phase) -> Self {
        *phase.of(counts) += 1;
        Self {
            shelf: Arc::clone(shelf),
            phase,
        }
    }

    fn new(shelf: &Arc<Shelf>, phase: Phase) -> Self {
        shelf.count_in(phase);
        Self {
            shelf: Arc::clone(shelf),
            phase,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shelf.count_out(self.phase);
    }
}

/// A sandbox that is being started.
#[derive(Debug)]
pub(super) struct Creating(Held);

/// A sandbox that a job has.
#[derive(Debug)]
pub(super) struct Leased(Held);

/// A sandbox that is being destroyed.
#[derive(Debug)]
#[expect(dead_code, reason = "it is held for its drop")]
pub(super) struct Retiring(Held);

impl Creating {
    pub(super) fn counted(shelf: &Arc<Shelf>, counts: &mut Counts) -> Self {
        Self(Held::counted(shelf, counts, Phase::Creating))
    }

    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.0.shelf
    }

    /// It answered: the job that waits longest gets it, else the shelf. One of an image that was replaced meanwhile comes
    /// back.
    pub(super) fn deliver(self, mut warm: Warm) -> Option<(Warm, Retiring)> {
        if !self.shelf().is_current(&warm) {
            return Some((warm, self.retire()));
        }
        while let Some(job) = self.shelf().succeeded() {
            let leased = Leased(Held::new(self.shelf(), Phase::Leased));
            match job.send(Ok((warm, leased))) {
                // The job is gone: on to the next, with the same sandbox.
                Err(Ok((back, _))) => warm = back,
                Ok(()) | Err(Err(_)) => return None,
            }
        }
        self.shelf().put(warm);
        None
    }

    /// It answered and goes to the job that had it started.
    pub(super) fn lease(self) -> Leased {
        Leased(Held::new(self.shelf(), Phase::Leased))
    }

    /// It did not answer, or came too late.
    pub(super) fn retire(self) -> Retiring {
        Retiring(Held::new(self.shelf(), Phase::Retiring))
    }
}

impl Leased {
    pub(super) fn counted(shelf: &Arc<Shelf>, counts: &mut Counts) -> Self {
        Self(Held::counted(shelf, counts, Phase::Leased))
    }

    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.0.shelf
    }

    pub(super) fn retire(self) -> Retiring {
        Retiring(Held::new(self.shelf(), Phase::Retiring))
    }
}

impl Retiring {
    pub(super) fn counted(shelf: &Arc<Shelf>, counts: &mut Counts) -> Self {
        Self(Held::counted(shelf, counts, Phase::Retiring))
    }
}
