//! The scheduler against real Postgres and Redis.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod cluster;
mod failover;
mod fires;
mod fixture;
mod forgetting;
mod sweep;
