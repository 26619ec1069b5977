//! `hothouse verify`: every known attempt to break a sandbox, against this machine's own.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use common::config;
use serde_json::json;
use worker::config::Driver;
use worker::verify::{self, Attempt, Bench, Finding, Verdict};

use crate::globals::Globals;
use crate::services::sandboxes::{self, Wanted};
use crate::{exit, output};

/// Options of `hothouse verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Configuration file of the worker; the environment is read on top of it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What makes the sandboxes
    #[arg(long)]
    driver: Option<Wanted>,
    /// The Docker engine
    #[arg(long, env = "DOCKER_HOST", value_name = "URL")]
    docker_host: Option<String>,
    /// Image of the default environment instead of the one that was built last
    #[arg(long)]
    image: Option<String>,
    /// One environment instead of all
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// Only attempts whose group or name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Show the attempts that held too
    #[arg(long)]
    all: bool,
}

/// Makes the attempts; fails when one succeeds, or cannot be judged.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let settings = settings(&args)?;
    let (benches, driver) = worker::benches(&settings, args.environment.as_deref()).await?;
    let attempts = chosen(args.only.as_deref());
    anyhow::ensure!(!attempts.is_empty(), "no attempt has that in its name");
    let mut has_held = true;
    for bench in &benches {
        let findings = make(bench, &attempts).await?;
        has_held &= findings.iter().all(|finding| finding.verdict.is_fine());
        print(bench.environment(), driver, &findings, args.all, globals.json)?;
    }
    Ok(if has_held {
        ExitCode::SUCCESS
    } else {
        exit::FAILED.into()
    })
}

fn settings(args: &Args) -> anyhow::Result<worker::config::Sandboxes> {
    let config: worker::Config = config::load(args.file.as_deref(), config::environment())?;
    let mut settings = config.sandbox;
    match args.driver {
        None => {}
        Some(Wanted::Auto) => settings.driver = Driver::Auto,
        Some(Wanted::Docker) => settings.driver = Driver::Docker,
        Some(Wanted::Bubblewrap) => settings.driver = Driver::Bubblewrap,
    }
    if let Some(host) = &args.docker_host {
        settings.docker_host.clone_from(host);
    }
    if let Some(image) = &args.image {
        settings.image.clone_from(image);
    }
    if settings.init.as_os_str().is_empty()
        && let Ok(init) = sandboxes::find_init(None)
    {
        settings.init = init;
    }
    Ok(settings)
}

fn chosen(only: Option<&str>) -> Vec<Attempt> {
    let mut attempts = verify::attempts();
    if let Some(only) = only {
        attempts.retain(|attempt| attempt.name.contains(only) || group(attempt.group).contains(only));
    }
    attempts
}

async fn make(bench: &Bench, attempts: &[Attempt]) -> anyhow::Result<Vec<Finding>> {
    let bar = output::bar(attempts.len() as u64, "attempting");
    let findings = verify::verify(bench, attempts, |_finding| bar.inc(1)).await;
    bar.finish_and_clear();
    bench.clear().await.context("sandboxes are left")?;
    Ok(findings)
}

fn print(environment: &str, driver: &str, findings: &[Finding], all: bool, is_json: bool) -> anyhow::Result<()> {
    if is_json {
        for finding in findings {
            let mut line = serde_json::to_value(finding)?;
            line["environment"] = json!(environment);
            line["driver"] = json!(driver);
            output::json(&line)?;
        }
        return Ok(());
    }
    let shown = findings.iter().filter(|finding| all || !finding.verdict.has_held());
    let rows: Vec<[String; 4]> = shown
        .map(|finding| {
            let (word, detail) = match &finding.verdict {
                Verdict::Held(why) => ("held", why),
                Verdict::Broken(what) => ("BROKEN", what),
                Verdict::Unclear(why) => ("unclear", why),
                Verdict::DoesNotApply(why) => ("does not apply", why),
            };
            let name = finding.name.to_owned();
            [
                group(finding.group),
                name,
                word.to_owned(),
                detail.chars().take(160).collect(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        output::table(["GROUP", "ATTEMPT", "VERDICT", "DETAIL"], rows)?;
    }
    let held = findings.iter().filter(|finding| finding.verdict.has_held()).count();
    output::line(format_args!(
        "environment {environment:?}, {driver}: {held} of {} attempts held",
        findings.len()
    ))?;
    Ok(())
}

fn group(group: verify::Group) -> String {
    serde_json::to_value(group)
        .ok()
        .and_then(|name| name.as_str().map(str::to_owned))
        .unwrap_or_default()
}
