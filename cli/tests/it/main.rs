//! The command as its users meet it: the real binary, real connections, real signals.

mod help;
mod run;
mod server;
