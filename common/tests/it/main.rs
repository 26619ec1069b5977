//! The queue, the store and the log on real services: every test has its own schema and its own keys.

mod cancel;
mod fairness;
mod fence;
mod log;
mod order;
mod places;
mod reclaim;
mod spill;
mod submit;
mod turns;
mod walk;
