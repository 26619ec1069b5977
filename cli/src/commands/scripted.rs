//! `hothouse scripted`: models that follow rules, served over both wires.
//!
//! It needs no database and no key, so that anybody's program can be tested against answers, errors and pauses that are
//! always the same.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use worker::model::scripted::{Scripted, serve};

use crate::globals::Globals;
use crate::interrupt::Interrupts;
use crate::services::progress::say;

/// Options of `hothouse scripted`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it listens; port 0 is any free one
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,

    /// A file of rules: a script, or `{"models": {"NAME": SCRIPT}}` with `*` for every other name; may be repeated
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
}

/// Serves until Ctrl-C.
pub(crate) async fn run(args: Args, _globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut scripted = Scripted::built_in();
    for file in &args.rules {
        scripted.load_file(file)?;
    }
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let names = scripted.names().collect::<Vec<_>>().join(", ");
    say(&format!(
        "Scripted models ({names}) at http://{address}\n\n\
         ANTHROPIC_BASE_URL=http://{address} OPENAI_BASE_URL=http://{address}/v1, and any key.\n\
         GET /told says what all answers together reported as used. Ctrl-C stops."
    ));
    let stop = CancellationToken::new();
    let mut interrupts = Interrupts::new()?;
    tokio::select! {
        () = serve(Arc::new(scripted), listener, stop.clone()) => {}
        () = interrupts.next() => stop.cancel(),
    }
    Ok(ExitCode::SUCCESS)
}
