//! `hothouse logs`: what a job printed, from its first event, and on as it comes.

use std::io;
use std::process::ExitCode;

use serde_json::Value;
use uuid::Uuid;

use crate::client::{Client, Event, LogPages};
use crate::globals::Globals;
use crate::interrupt::Interrupts;
use crate::output;
use crate::watch::{OnInterrupt, Seen, Watch};

/// Options of `hothouse logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "JOB")]
    id: Uuid,

    /// Go on until the job ends; Ctrl-C leaves it running
    #[arg(short, long)]
    follow: bool,

    /// Only events after this one
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,

    /// Show every event, one a line, not only what was printed
    #[arg(short, long)]
    events: bool,
}

/// Shows the log of a job.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let client = Client::new(globals)?;
    let show = |event: &Event| show(event, args.events, globals.json);
    if !args.follow {
        pages(&client, &args, show).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let watch = Watch {
        client: &client,
        job_id: args.id,
        after: args.after,
        on_interrupt: OnInterrupt::Leave,
    };
    let show = |seen: Seen<'_>| match seen {
        Seen::Event(event) => show(event),
        Seen::WaitsFor(reason) => {
            output::note(format_args!("waiting: {reason}"));
            Ok(())
        }
    };
    watch.run(&mut Interrupts::new()?, show).await?;
    Ok(ExitCode::SUCCESS)
}

/// Reads what there is now.
async fn pages(client: &Client, args: &Args, show: impl Fn(&Event) -> io::Result<()>) -> anyhow::Result<()> {
    let mut log = LogPages::new(client, args.id, args.after);
    while let Some(events) = log.next().await? {
        events.iter().try_for_each(&show)?;
    }
    Ok(())
}

fn show(event: &Event, every: bool, is_json: bool) -> io::Result<()> {
    if is_json {
        return output::json(&event.to_json());
    }
    if every {
        let mut fields = event.data.clone();
        let at = fields.remove("at").unwrap_or_default();
        fields.remove("seq");
        let at = at.as_str().unwrap_or_default();
        let fields = Value::Object(fields).to_string();
        let texts = [at, &event.kind, &fields].map(output::clean);
        return output::line(format!("{}\t{}", event.seq, texts.join("\t")));
    }
    match event.kind.as_str() {
        "stdout" | "message.delta" | "tool.output" => output::text(event.text("text"))?,
        "stderr" => output::error_text(event.text("text")),
        "failed" => output::note(failure(event)),
        "cancelled" => output::note("cancelled"),
        "resume_gap" => output::note("a part of the output was lost with the machine that held it"),
        "attempt_reset" => output::note("a new attempt begins; the output so far was of another"),
        _ => {}
    }
    Ok(())
}

/// Why the job failed, as one sentence.
pub(super) fn failure(event: &Event) -> String {
    let error = event.data.get("error").unwrap_or(&Value::Null);
    output::clean(&format!(
        "failed: {} ({})",
        output::field(error, "message"),
        output::field(error, "code")
    ))
}
