//! The scheduler against real Postgres and Redis.

mod cluster;
mod failover;
mod fires;
mod fixture;
mod forgetting;
