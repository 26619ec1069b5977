//! PID 1 of a sandbox.
//!
//! It speaks [`hothouse_protocol`] over its standard input and output and needs nothing else: no port, no shared
//! folder, no file but itself. One thread, one loop ([`server`]); each run gets a [`supervisor`] of its own, a fork of
//! init that reaps the run's whole tree of processes and kills it whole, and that is there before the request ([`spare`]).
//! Files are moved and cleared by init's own other faces ([`files`]), which run as the job and can do no more than a job
//! can.
//!
//! # Invariants
//! - Nothing of a job runs with init's uid, capabilities or descriptors.
//! - When the input ends, the lease passes, or a frame is not of this connection, everything dies and init exits.
//! - Control never waits for data: what may block is read and written only when it is ready.
//!
//! # Building
//! `RUSTFLAGS="-C target-feature=+crt-static" cargo build -p hothouse-init --profile init --target
//! <arch>-unknown-linux-gnu --target-dir target/init` makes a static binary of less than 3 MB.

mod about;
mod cgroup;
mod child;
mod cleaner;
mod clock;
mod connection;
mod files;
mod input;
mod mounts;
mod output;
mod plan;
mod run;
mod server;
mod spare;
mod supervisor;
mod surroundings;
mod sys;
mod tcp;
mod tree;
mod trouble;
mod tunnel;
mod wires;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (None, _) => server::serve(None),
        (Some("as"), Some(uid)) if uid.parse::<u32>().is_ok() => server::serve(uid.parse().ok()),
        (Some("unpack"), Some(request)) => files::main(files::Face::Unpack, &request),
        (Some("reset"), Some(request)) => files::main(files::Face::Reset, &request),
        (Some("pack"), Some(request)) => files::main(files::Face::Pack, &request),
        _ => {
            complain("usage: hothouse-init [as UID], as PID 1 of a sandbox");
            ExitCode::from(2)
        }
    }
}

/// One line for whoever keeps the standard error of the sandbox.
#[expect(clippy::print_stderr, reason = "the only way to say why there is no connection")]
fn complain(why: impl std::fmt::Display) {
    eprintln!("hothouse-init: {why}");
}

/// For a call whose failure changes nothing or shows elsewhere; each use says which.
fn whatever<T, E>(_: Result<T, E>) {}
