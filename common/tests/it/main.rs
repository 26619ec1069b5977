//! The queue, the store and the log on real services: every test has its own schema and its own keys.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod accounts;
mod alone;
mod budgets;
mod bulk;
mod cancel;
mod checks;
mod crowd;
mod fairness;
mod fence;
mod gates;
mod in_place;
mod list;
mod log;
mod order;
mod places;
mod reclaim;
mod search;
mod settings;
mod slots;
mod spill;
mod sticky;
mod strategies;
mod submit;
mod take_turn;
mod turns;
mod waiting;
mod wakes;
mod walk;
mod workspaces;
