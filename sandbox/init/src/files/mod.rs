//! Files in and out of the workspace, as tar streams.
//!
//! These are faces of init's own program that run as the job, in the workspace, like any program of a run: what they
//! may touch the kernel decides, and a hole in them gives a job nothing that it does not have. The checks here keep a
//! hostile archive from surprising its owner, not the machine.

mod folder;
mod pack;
mod report;
mod reset;
mod text;
mod unpack;

use std::io::{self, Write};
use std::process::ExitCode;

use hothouse_protocol::{FilesReport, Reset};
use nix::sys::prctl;
use serde::de::DeserializeOwned;

use self::report::Error;
pub(crate) use self::reset::{Known, QUEUES, reset};
pub(crate) use self::text::write_texts;
use crate::whatever;

/// Which of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Face {
    /// From standard input into the workspace.
    Unpack,
    /// From the workspace to standard output.
    Pack,
    /// Everything away, for workers that do not know of [`hothouse_protocol::ToInit::Reset`].
    Reset,
}

/// Does what `request` says and reports on standard error.
pub(crate) fn main(face: Face, request: &str) -> ExitCode {
    // Without it another process of the job could trace this one and forge the report, and deceive only its own owner.
    whatever(prctl::set_dumpable(false));
    let mut report = FilesReport::default();
    let done = match face {
        Face::Unpack => parse(request).and_then(|request| unpack::unpack(&request, io::stdin().lock(), &mut report)),
        Face::Reset => {
            parse(request).and_then(|Reset { folders }| reset(folders.iter().map(String::as_str), Known::default()))
        }
        Face::Pack => parse(request).and_then(|request| pack::pack(&request, io::stdout().lock(), &mut report)),
    };
    report.error = done.as_ref().err().map(ToString::to_string);
    let told = serde_json::to_vec(&report).map(|text| io::stderr().write_all(&text).is_ok());
    if done.is_ok() && matches!(told, Ok(true)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse<T: DeserializeOwned>(request: &str) -> Result<T, Error> {
    serde_json::from_str(request).map_err(Error::Request)
}
