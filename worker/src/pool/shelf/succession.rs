//! Who gets a sandbox that was reset: a job of its owner's that waits for it, else the shelf. A reset takes milliseconds and
//! a start many times that, so a job whose owner has one on the way does not take a fresh one.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{KeptFor, Shelf, Warm, counts};
use crate::pool::Slot;
use crate::pool::held::{Leased, Retiring};
use crate::pool::plan;

/// Resets that are under way, and the jobs that wait for them.
#[derive(Debug, Default)]
pub(super) struct Resets {
    // Whose sandboxes are being reset: an owner is named once for each.
    owners: Vec<KeptFor>,
    // Of each owner no more than are being reset.
    heirs: VecDeque<(KeptFor, oneshot::Sender<Slot>)>,
}

impl Resets {
    fn count(&self, owner: &KeptFor) -> usize {
        self.owners.iter().filter(|other| *other == owner).count()
    }

    fn heirs(&mut self, owner: &KeptFor) -> usize {
        self.heirs.retain(|(_, heir)| !heir.is_closed());
        self.heirs.iter().filter(|(other, _)| other == owner).count()
    }
}

/// What there is for a job that may have a used sandbox of its owner's.
pub(in crate::pool) enum Heritage {
    /// One that was kept, with the version of the workspace in it.
    Kept(Box<Warm>, Leased, u64),
    /// One comes as soon as it is reset; or the sender goes, and it is to be asked again.
    Soon(oneshot::Receiver<Slot>),
    /// None.
    Nothing,
}

/// What becomes of a sandbox that was reset.
pub(in crate::pool) enum Succession {
    /// This job gets it.
    Heir(oneshot::Sender<Slot>),
    /// It is kept.
    Shelf,
    /// Others wait for its place, or it is too old, or of an older image.
    Nobody,
}

/// A reset that is under way. When it goes, nobody waits for it any more.
#[derive(Debug)]
pub(in crate::pool) struct Resetting {
    shelf: Arc<Shelf>,
    owner: KeptFor,
}

impl Drop for Resetting {
    fn drop(&mut self) {
        let resets = &mut self.shelf.lock().resets;
        if let Some(index) = resets.owners.iter().position(|owner| *owner == self.owner) {
            resets.owners.swap_remove(index);
        }
        while resets.heirs(&self.owner) > resets.count(&self.owner) {
            let youngest = resets.heirs.iter().rposition(|(owner, _)| *owner == self.owner);
            // Its end is how the job hears of it.
            drop(youngest.and_then(|index| resets.heirs.remove(index)));
        }
    }
}

impl Shelf {
    /// A sandbox of this owner's is being reset from now on.
    pub(in crate::pool) fn resetting(self: &Arc<Self>, owner: &KeptFor) -> Resetting {
        self.lock().resets.owners.push(owner.clone());
        Resetting {
            shelf: Arc::clone(self),
            owner: owner.clone(),
        }
    }

    /// Takes the one that was kept for this owner last, or a place in line for one that is being reset.
    pub(in crate::pool) fn inherit(self: &Arc<Self>, owner: &KeptFor) -> Heritage {
        let mut state = self.lock();
        if let Some(index) = state.kept.iter().rposition(|kept| kept.owner == *owner)
            && let Some(kept) = state.kept.remove(index)
        {
            let leased = Leased::counted(self, &mut state.counts);
            return Heritage::Kept(Box::new(kept.warm), leased, kept.version);
        }
        let resets = &mut state.resets;
        if resets.heirs(owner) >= resets.count(owner) {
            return Heritage::Nothing;
        }
        let (sender, receiver) = oneshot::channel();
        resets.heirs.push_back((owner.clone(), sender));
        Heritage::Soon(receiver)
    }

    /// For whom sandboxes are kept.
    pub(in crate::pool) fn kept_for(&self) -> Vec<KeptFor> {
        self.lock().kept.iter().map(|kept| kept.owner.clone()).collect()
    }

    /// Takes everything off that is kept for this owner.
    pub(in crate::pool) fn take_kept(self: &Arc<Self>, owner: &KeptFor) -> Vec<(Warm, Retiring)> {
        let mut state = self.lock();
        let (theirs, others): (Vec<_>, Vec<_>) = state.kept.drain(..).partition(|kept| kept.owner == *owner);
        state.kept = others.into();
        let theirs = theirs.into_iter();
        theirs
            .map(|kept| (kept.warm, Retiring::counted(self, &mut state.counts)))
            .collect()
    }

    /// Who gets a sandbox of this owner's that was reset and became warm so long ago.
    pub(in crate::pool) fn succession(&self, owner: &KeptFor, warm: &Warm) -> Succession {
        let limits = &self.environment.warm;
        if warm.since.elapsed() >= limits.age {
            return Succession::Nobody;
        }
        let mut state = self.lock();
        if !state.image.is_of(warm) {
            return Succession::Nobody;
        }
        let mut counts = counts(&mut state);
        // As if it lay on the shelf, where those who have nothing would take its place.
        counts.leased = counts.leased.saturating_sub(1);
        counts.kept += 1;
        if counts.waiting > 0 && plan::evict(counts, limits) > 0 {
            return Succession::Nobody;
        }
        let heirs = &mut state.resets.heirs;
        let first = heirs.iter().position(|(other, _)| other == owner);
        match first.and_then(|index| heirs.remove(index)) {
            Some((_, heir)) => Succession::Heir(heir),
            None => Succession::Shelf,
        }
    }
}
