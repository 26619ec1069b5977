//! What every part of Hothouse shares: domain types, the job state machine, the queue (Redis), the store (Postgres),
//! configuration, telemetry and lifecycle.
//!
//! [`job`] does no I/O. [`queue`] and [`store`] use it and not each other; what needs both joins them itself, as
//! [`log`] does for a job's events.

pub mod agent;
pub mod batch;
pub mod cancel;
pub mod clock;
pub mod config;
pub mod cron;
pub mod egress;
pub mod health;
pub mod ids;
pub mod job;
pub mod json;
pub mod lifecycle;
pub mod log;
pub mod message;
pub mod metrics;
pub mod money;
pub mod objects;
pub mod queue;
pub mod schedule;
pub mod service;
pub mod store;
pub mod telemetry;
#[cfg(feature = "testing")]
#[expect(clippy::unwrap_used, reason = "a fixture of tests fails as the test does")]
pub mod testing;
pub mod turn;
pub mod workspace;
