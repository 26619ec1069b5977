//! The command as its users meet it: the real binary, real connections, real signals.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a helper of a test fails as the test does"
)]

mod bench;
mod budgets;
mod cancels;
mod claude_code;
mod cluster;
mod faults;
mod groups;
mod health;
mod help;
mod humaneval;
mod kills;
mod ledger;
mod odd_turns;
mod provider;
mod recovery;
mod removals;
mod run;
mod server;
mod sticky;
mod talk;
mod talking;
mod torture;
mod tour;
mod up;
