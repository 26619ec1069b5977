//! The API over a real socket, with real Postgres and Redis.

mod agents;
mod bad_input;
mod batches;
mod contract;
mod conversations;
mod events;
mod faults;
mod fixture;
mod jobs;
mod lists;
mod operating;
mod schedules;
mod tenancy;
