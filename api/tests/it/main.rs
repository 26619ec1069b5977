//! The API over a real socket, with real Postgres and Redis.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod agents;
mod bad_input;
mod batches;
mod contract;
mod conversations;
mod events;
mod faults;
mod files;
mod fixture;
mod groups;
mod jobs;
mod limits;
mod lists;
mod operating;
mod schedule_policies;
mod schedules;
mod talk;
mod tenancy;
