//! `hothouse run`: a program in a sandbox, as if it ran here.

mod artifacts;
mod language;
mod request;
mod show;

use std::process::ExitCode;

use serde_json::Value;

pub(crate) use self::request::Args;
use crate::client::{Client, Job};
use crate::globals::Globals;
use crate::interrupt::Interrupts;
use crate::watch::{End, OnInterrupt, Watch};
use crate::{exit, output, watch};

/// Submits the program, shows its output as it comes and ends as it ended.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let body = args.to_job()?;
    let client = Client::new(globals)?;
    let mut interrupts = Interrupts::new()?;
    let Some(job) = submit(&client, &body, &mut interrupts).await? else {
        return Ok(exit::CANCELLED.into());
    };
    let id = serde_json::from_value::<Job>(job.clone())?.id;
    if args.detach {
        if globals.json {
            output::json(&job)?;
        } else {
            output::line(id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }

    let watch = Watch {
        client: &client,
        job_id: id,
        after: None,
        on_interrupt: OnInterrupt::Cancel,
    };
    let mut show = show::Show::new(globals.json);
    let end = watch.run(&mut interrupts, |seen| show.seen(seen)).await;
    show.finish();
    if end? == End::Left {
        output::note(format_args!("left job {id}; see it with `hothouse jobs show {id}`"));
        return Ok(exit::CANCELLED.into());
    }
    finish(&client, &args, globals, &id.to_string()).await
}

/// Submits; Ctrl-C meanwhile cancels the job as soon as it is accepted, and answers nothing.
async fn submit(client: &Client, body: &Value, interrupts: &mut Interrupts) -> anyhow::Result<Option<Value>> {
    let submitting = client.submit::<Value>(&["jobs"], body);
    tokio::pin!(submitting);
    tokio::select! {
        job = &mut submitting => return Ok(Some(job?)),
        () = interrupts.next() => {}
    }
    tokio::select! {
        job = &mut submitting => {
            let job: Job = serde_json::from_value(job?)?;
            watch::cancel(client, job.id).await?;
        }
        () = interrupts.next() => output::note("left while submitting: the job may have been accepted"),
    }
    Ok(None)
}

/// Saves what the program made and tells how it ended.
async fn finish(client: &Client, args: &Args, globals: &Globals, id: &str) -> anyhow::Result<ExitCode> {
    let raw: Value = client.get(&["jobs", id], &[]).await?;
    let job: Job = serde_json::from_value(raw.clone())?;
    artifacts::save(client, &job.result, &args.artifacts_dir).await?;
    if globals.json {
        output::json(&raw)?;
    } else if let Some(error) = job.error.as_ref().filter(|error| error.code != "nonzero_exit") {
        output::note(format_args!(
            "{} ({})",
            output::clean(&error.message),
            output::clean(&error.code)
        ));
    }
    Ok(exit::of(&job).into())
}
