//! That the job ends: from every state, when nothing more goes wrong and everybody takes their steps in turn.
//!
//! A property of each state instead of a search for endless paths: it needs no assumption of fairness, and a bound comes
//! with it.

use stateright::Model;

use crate::{Action, Protocol, State};

/// Units of time within which the job ends.
const ROUNDS: u32 = 24;

/// Steps that everybody takes in a unit of time.
const STEPS: u32 = 10;

impl Protocol {
    /// Whether the job ends from here.
    pub(crate) fn ends(&self, state: &State) -> bool {
        let mut state = *state;
        state.faults_left = 0;
        state.redis.is_away = false;
        for _ in 0..ROUNDS {
            for _ in 0..STEPS {
                state = self.each_in_turn(state);
            }
            if state.postgres.is_done {
                return true;
            }
            state = self.next_state(&state, Action::Tick).unwrap_or(state);
        }
        false
    }

    /// Everybody takes the step that they may take.
    fn each_in_turn(&self, mut state: State) -> State {
        let mut actions = Vec::new();
        self.actions(&state, &mut actions);
        for action in actions.into_iter().filter(|action| !matches!(action, Action::Tick)) {
            if self.is_still_there(&state, action) {
                state = self.next_state(&state, action).unwrap_or(state);
            }
        }
        state
    }

    /// Whether the step is still there to be taken.
    fn is_still_there(&self, state: &State, action: Action) -> bool {
        let mut now = Vec::new();
        self.actions(state, &mut now);
        now.contains(&action)
    }
}
