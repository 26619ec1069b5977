//! The HTTP API of Hothouse: jobs, their live event logs, agents, conversations and what operates the system.
//!
//! A stateless process, run in any number. [`Server::bind`] takes the address, [`Server::serve`] answers until the
//! lifecycle's soft stop and then finishes what is under way; [`run`] does both.
//!
//! # Code map
//! [`request`] is around every request; [`auth`] and [`rate_limit`] around those below the base path; [`extract`] reads,
//! [`routes`] act, [`problem`] refuses. [`submit`] is where jobs are committed, [`hub`] wakes those who follow one.

pub mod auth;
pub mod changes;
pub mod config;
mod download;
pub mod extract;
pub mod hub;
pub mod job;
mod linger;
mod listener;
mod openapi;
pub mod problem;
mod rate_limit;
mod request;
pub mod routes;
mod server;
pub mod sse;
pub mod state;
pub mod submit;
mod threads;
mod timings;

pub use config::Config;
pub use openapi::document;
pub use server::{Server, run};
