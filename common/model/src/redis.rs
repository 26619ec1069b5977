//! One shard of the index, with the one job in it. Each function is one script of `common/src/queue/lua`.

use crate::{Rules, TTL};

/// What is known of the job: `idx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    /// `b`, `p`, `r`: it can be claimed as this attempt.
    Ready(u8),
    /// `l`: leased to a worker, with what is left of it.
    Leased { attempt: u8, worker: usize, left: u8 },
    /// `o`: leased in the name of a worker that has not registered.
    Adopted { attempt: u8, worker: usize, left: u8 },
    /// `f`: an attempt that waits until the lease of the one before has passed.
    HeldBack { attempt: u8, left: u8 },
    /// `d`: this attempt has ended and another follows.
    Deferred(u8),
}

impl Entry {
    pub(crate) fn attempt(self) -> u8 {
        match self {
            Self::Ready(attempt)
            | Self::Leased { attempt, .. }
            | Self::Adopted { attempt, .. }
            | Self::HeldBack { attempt, .. }
            | Self::Deferred(attempt) => attempt,
        }
    }

    fn left(&mut self) -> Option<&mut u8> {
        match self {
            Self::Leased { left, .. } | Self::Adopted { left, .. } | Self::HeldBack { left, .. } => Some(left),
            Self::Ready(_) | Self::Deferred(_) => None,
        }
    }

    /// Whose lease it is, whether it has registered or not.
    pub(crate) fn holder(self) -> Option<usize> {
        match self {
            Self::Leased { worker, .. } | Self::Adopted { worker, .. } => Some(worker),
            _ => None,
        }
    }
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Beaten {
    /// Extended.
    Ok,
    /// A later attempt is known.
    Lost,
    /// Redis does not know the lease, or it has passed.
    Unsure,
    /// No answer.
    Away,
}

/// What Redis knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Redis {
    /// The job's entry.
    pub(crate) entry: Option<Entry>,
    /// `gen`: the age of the generation and which wipe it followed; `None` when there is none.
    pub(crate) begun: Option<(u8, u8)>,
    /// Whether it is open for claims. A field of its own, as in Redis: a careless hand may set it alone.
    pub(crate) is_open: bool,
    /// Wipes so far, which tell generations apart.
    pub(crate) wipes: u8,
    /// Whether nobody is answered.
    pub(crate) is_away: bool,
    /// Whether the job keeps a place of its key between attempts: only then is it remembered meanwhile.
    pub(crate) has_place: bool,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            entry: Some(Entry::Ready(1)),
            begun: Some((TTL, 0)),
            is_open: true,
            wipes: 0,
            is_away: false,
            has_place: false,
        }
    }
}

impl Redis {
    pub(crate) fn tick(&mut self) {
        if let Some(left) = self.entry.as_mut().and_then(Entry::left) {
            *left = left.saturating_sub(1);
        }
        if let Some((age, _)) = &mut self.begun {
            *age = (*age + 1).min(TTL);
        }
    }

    /// FLUSHALL, or a restart without what was known.
    pub(crate) fn wipe(&mut self) {
        *self = Self {
            entry: None,
            begun: None,
            is_open: false,
            wipes: self.wipes + 1,
            ..*self
        };
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.is_away && self.is_open && matches!(self.entry, Some(Entry::Ready(_)))
    }

    /// `claim.lua`.
    pub(crate) fn claim(&mut self, worker: usize) -> Option<u8> {
        match self.entry {
            Some(Entry::Ready(attempt)) if self.is_open => {
                let left = TTL;
                self.entry = Some(Entry::Leased { attempt, worker, left });
                Some(attempt)
            }
            _ => None,
        }
    }

    /// `heartbeat.lua`.
    pub(crate) fn heartbeat(&mut self, attempt: u8, worker: usize) -> Beaten {
        match &mut self.entry {
            Some(entry) if entry.attempt() > attempt => Beaten::Lost,
            Some(Entry::Leased {
                attempt: known,
                worker: holder,
                left,
            }) if (*known, *holder) == (attempt, worker) && *left > 0 => {
                *left = TTL;
                Beaten::Ok
            }
            _ => Beaten::Unsure,
        }
    }

    /// `register.lua`: only what Postgres confirmed comes here.
    pub(crate) fn register(&mut self, attempt: u8, worker: usize) -> bool {
        let is_accepted = self.entry.is_none_or(|known| known.attempt() <= attempt);
        if is_accepted {
            let left = TTL;
            self.entry = Some(Entry::Leased { attempt, worker, left });
        }
        is_accepted
    }

    /// `ack.lua`.
    pub(crate) fn ack(&mut self, attempt: u8, goes_on: bool) {
        if self
            .entry
            .is_some_and(|known| known.holder().is_some() && known.attempt() == attempt)
        {
            self.entry = (goes_on && self.has_place).then_some(Entry::Deferred(attempt));
        }
    }

    /// `drop.lua`.
    pub(crate) fn drop_claim(&mut self, attempt: u8, worker: usize) {
        if self
            .entry
            .is_some_and(|known| known.holder() == Some(worker) && known.attempt() == attempt)
        {
            self.entry = None;
        }
    }

    /// The same, unless the lease lives.
    pub(crate) fn drop_passed(&mut self, attempt: u8, worker: usize) {
        if self.entry.as_mut().and_then(Entry::left).is_some_and(|left| *left == 0) {
            self.drop_claim(attempt, worker);
        }
    }

    /// `cancel.lua`, of a job that has ended.
    pub(crate) fn forget(&mut self) {
        self.entry = None;
    }

    /// `dispatch.lua`.
    pub(crate) fn dispatch(&mut self, rules: Rules, attempt: u8) {
        let Some(mut known) = self.entry else {
            self.entry = Some(Entry::Ready(attempt));
            return;
        };
        if known.attempt() >= attempt {
            return;
        }
        let left = known.left().map_or(0, |left| *left);
        self.entry = Some(if left > 0 && rules.next_attempt_waits {
            Entry::HeldBack { attempt, left }
        } else {
            Entry::Ready(attempt)
        });
    }

    /// `adopt.lua`.
    pub(crate) fn adopt(&mut self, rules: Rules, attempt: u8, worker: usize) {
        let is_behind = self.entry.is_none_or(|known| {
            known.attempt() < attempt || (known.attempt() == attempt && known.holder() != Some(worker))
        });
        if is_behind {
            let left = if rules.wipe_waits { TTL } else { 0 };
            self.entry = Some(Entry::Adopted { attempt, worker, left });
        }
    }

    /// `expired.lua`: the lease that has passed, if it has. A job that was held back behind it is released.
    pub(crate) fn expired(&mut self) -> Option<(u8, usize)> {
        match self.entry {
            Some(
                Entry::Leased {
                    attempt,
                    worker,
                    left: 0,
                }
                | Entry::Adopted {
                    attempt,
                    worker,
                    left: 0,
                },
            ) => Some((attempt, worker)),
            Some(Entry::HeldBack { attempt, left: 0 }) => {
                self.entry = Some(Entry::Ready(attempt));
                None
            }
            _ => None,
        }
    }

    /// `generation.lua`, where there is none.
    pub(crate) fn begin(&mut self) {
        self.begun = self.begun.or(Some((0, self.wipes)));
    }

    /// `open.lua`.
    pub(crate) fn open(&mut self, generation: u8) {
        self.is_open |= self.begun.is_some_and(|(_, begun)| begun == generation);
    }
}
