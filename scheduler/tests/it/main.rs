//! The scheduler against real Postgres and Redis.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod ahead;
mod asleep;
mod clocks;
mod cluster;
mod failover;
mod fires;
mod fixture;
mod forgetting;
mod interleavings;
mod lanes;
mod lines;
mod odd_jobs;
mod policies;
mod redispatch;
mod rollback;
mod sweep;
mod year;
