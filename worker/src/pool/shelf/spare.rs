//! A shelf's spares: which are there, and which to prepare.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Shelf, State, Warm, count, counts};
use crate::claude::{Process, Recipe};
use crate::environment;
use crate::pool::held::Creating;
use crate::pool::spares::Preparing;

/// How long no job must have come before a spare is made ready.
const QUIET: Duration = Duration::from_secs(2);

impl Shelf {
    /// Remembers that Claude Code is started in this way.
    pub(in crate::pool) fn remember(&self, recipe: &Recipe) {
        let now = self.epoch.elapsed();
        self.lock().spares.remember(recipe, now);
        self.wake.notify_one();
    }

    /// Does not start it in this way any more until somebody asks for it.
    pub(in crate::pool) fn forget(&self, recipe: &Recipe) {
        self.lock().spares.forget(recipe);
    }

    /// How many warm ones have Claude Code in them.
    pub(in crate::pool) fn spares(&self) -> u32 {
        count(self.lock().warm.iter().filter(|warm| warm.resident.is_some()).count())
    }

    /// A spare that is to be started now, in a sandbox that is taken off for it; or when to look again.
    pub(in crate::pool) fn plan_spare(self: &Arc<Self>) -> (Option<(Preparing, Warm, Creating)>, Option<Instant>) {
        let now = self.epoch.elapsed();
        let mut state = self.lock();
        let state = &mut *state;
        let waiting = counts(state).waiting;
        let there = state.warm.iter().filter_map(|warm| warm.resident.as_ref());
        let there: Vec<&Recipe> = there.map(Process::recipe).collect();
        let Some(recipe) = state.spares.missing(&there, &self.environment.warm, now) else {
            return (None, None);
        };
        if let Some(at) = state.spares_at().filter(|at| *at > now) {
            return (None, Some(self.epoch + at));
        }
        let unwanted = |warm: &Warm| match &warm.resident {
            Some(resident) => !state.spares.wants(resident.recipe(), &self.environment.warm, now),
            None => true,
        };
        let found = state.warm.iter().position(|warm| warm.resident.is_none());
        let Some(index) = found
            .or_else(|| state.warm.iter().position(unwanted))
            .filter(|_| waiting == 0)
        else {
            return (None, None);
        };
        let Some(warm) = state.warm.remove(index) else {
            return (None, None);
        };
        let preparing = Preparing::counted(self, &mut state.spares, recipe);
        (
            Some((preparing, warm, Creating::counted(self, &mut state.counts))),
            None,
        )
    }

    /// A spare is not being prepared any more.
    pub(in crate::pool) fn prepared(&self, recipe: &Recipe) {
        self.lock().spares.prepared(recipe);
    }
}

impl State {
    /// When spares may be made ready after claims: starting one takes the processors from the turn that has just begun.
    pub(super) fn spares_at(&self) -> Option<Duration> {
        self.recent.last_check_out.map(|at| at + QUIET)
    }

    /// How many are kept ready now: what the demand says, and where Claude Code is in use, one for each of its spares.
    pub(super) fn floor(&self, warm: &environment::Warm, now: Duration) -> environment::Warm {
        let size = self.ready(warm, now).size.max(self.sure_floor(warm, now).size);
        environment::Warm { size, ..warm.clone() }
    }

    /// The same without what Claude Code's spares need.
    pub(super) fn ready(&self, warm: &environment::Warm, now: Duration) -> environment::Warm {
        let size = self.demand.aim(warm, now);
        environment::Warm { size, ..warm.clone() }
    }

    /// The same without what is only expected to come: that takes no place from sandboxes which are kept for somebody.
    pub(super) fn sure_floor(&self, warm: &environment::Warm, now: Duration) -> environment::Warm {
        let spares = self.spares.wanted(warm, now);
        environment::Warm {
            size: warm.size.max(spares).min(warm.max),
            ..warm.clone()
        }
    }

    /// The same, for those that are kept: nobody loses a place to a spare while a turn begins, which is when none is made
    /// ready. Ending a sandbox takes the processors from that turn too.
    pub(super) fn room_floor(&self, warm: &environment::Warm, now: Duration) -> environment::Warm {
        match self.spares_at().filter(|at| *at > now) {
            Some(_) => warm.clone(),
            None => self.sure_floor(warm, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::agent::AgentDefinition;

    use super::*;

    #[test]
    fn nobody_loses_a_place_to_a_spare_while_a_turn_begins() {
        const S: Duration = Duration::from_secs(1);
        let warm = environment::Warm {
            size: 0,
            max: 8,
            claude_code: 1,
            idle: 100 * S,
            ..environment::Warm::default()
        };
        let mut state = State::default();
        let model = "anthropic/claude".parse().unwrap();
        let recipe = Recipe::new(&AgentDefinition::default(), &model, Vec::new());
        state.spares.remember(&recipe, 10 * S);
        state.recent.last_check_out = Some(10 * S);
        assert_eq!(state.room_floor(&warm, 10 * S).size, 0);
        assert_eq!(state.room_floor(&warm, 10 * S + QUIET).size, 1);
        assert_eq!(state.sure_floor(&warm, 10 * S).size, 1, "it is missed all the same");
    }
}
