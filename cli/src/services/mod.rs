//! What `hothouse up` starts beside itself: a private Postgres and a private Redis below one data folder.
//!
//! # Invariants
//! - Nothing but loopback is listened on, and both servers ask for a password that was made for this folder.
//! - A process is signalled only after [`process::is_ours`] has seen that it works in a folder of ours: a pid in a
//!   file may have been given to somebody else.
//! - An instance that the system runs is never touched.

pub(crate) mod account;
pub(crate) mod docker;
pub(crate) mod embedded;
pub(crate) mod folder;
pub(crate) mod ports;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod programs;
pub(crate) mod progress;
pub(crate) mod redis;
pub(crate) mod sample;
pub(crate) mod sandboxes;
pub(crate) mod server;
pub(crate) mod stores;
