//! The chat harness: the model alone, without tools and without a sandbox.

use super::native::{self, Context, Limits, NoTools, Turn, TurnEnd};

/// Calls of the model: one answers, a second corrects a model that calls a tool although there is none.
const STEPS_MAX: u32 = 2;

/// Takes a turn. Never fails by itself: how it went is in [`TurnEnd::stop`].
pub async fn run(turn: Turn, context: Context<'_>) -> TurnEnd {
    let limits = Limits {
        max_steps: turn.limits.max_steps.clamp(1, STEPS_MAX),
        ..turn.limits
    };
    native::run(Turn { limits, ..turn }, context, &NoTools).await
}
