//! What an idle system costs.

use std::fs;
use std::time::Duration;

use super::stores;
use crate::commands::bench::report::Report;

/// Programs whose memory is told.
const PROGRAMS: [&str; 4] = ["hothouse", "hothouse-api", "hothouse-worker", "hothouse-schedu"];

/// Options of `hothouse bench queue idle`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Measured time
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    seconds: u64,
}

/// Measures.
pub(super) async fn run(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (store, queue) = (stores::postgres()?, stores::redis()?);
    // The first look opens connections, and Postgres tells its counters late.
    let settle = Duration::from_secs(2);
    store.statistics().await?;
    tokio::time::sleep(settle).await;
    let (before, commands) = (store.statistics().await?, queue.statistics().await?.commands);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (after, commands_after) = (store.statistics().await?, queue.statistics().await?.commands);
    let each = |count: u64| {
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(u32::try_from(args.seconds).unwrap_or(1).max(1))
    };
    // Our own look is one of the counted.
    let transactions = each(after.transactions.saturating_sub(before.transactions + 1));
    report.number("Postgres", transactions, "transactions/s");
    report.number("Redis", each(commands_after.saturating_sub(commands + 1)), "commands/s");
    for (name, pid, kib) in resident() {
        report.remark(
            "memory",
            format!("{name} ({pid}): {} MB resident", kib * 1024 / 1_000_000),
        );
    }
    Ok(())
}

/// Name, process and resident kibibytes of our programs on this machine, but for this one.
fn resident() -> Vec<(String, u32, u64)> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let told = pids.filter(|pid| *pid != std::process::id()).filter_map(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let value = |name: &str| {
            Some(
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))?
                    .trim()
                    .to_owned(),
            )
        };
        let name = value("Name:")?;
        let kib = value("VmRSS:")?.trim_end_matches("kB").trim().parse().ok()?;
        PROGRAMS.contains(&name.as_str()).then_some((name, pid, kib))
    });
    told.collect()
}
