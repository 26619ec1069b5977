//! The Claude Code command line, as a process in a sandbox.
//!
//! It is driven over its standard input and output, a JSON object a line each way. Starting it takes half a second, so one
//! may be started before anybody needs it (a *spare*), and one that has answered may stay for the next turn of its
//! conversation. While nobody has it, a process *rests*: it is stopped (SIGSTOP), nothing else runs in its sandbox, and
//! the sandbox has no way out.
//!
//! # Invariants
//! - A spare knows nothing of a job: its recipe has no instructions, no session of anybody's and no token that a gateway
//!   accepts. All that comes with the claim.
//! - A process that has answered serves its own conversation alone, in the sandbox in which it runs.
//!
//! # Not here
//! What it says is `executor::program::claude`; which sandbox has one is [`crate::pool`].

mod process;
mod recipe;
mod settings;
pub mod words;

pub use process::{Error, Process, Said, Whose};
pub use recipe::{CONFIG_DIR, Recipe, SESSIONS_DIR, Session};
pub use settings::Settings;
