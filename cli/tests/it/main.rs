//! The command as its users meet it: the real binary, real connections, real signals.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod help;
mod run;
mod server;
