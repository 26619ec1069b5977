//! The measurements.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use common::clock::Clock;
use common::ids::{JobId, WorkerId};
use common::job::spec::SlotClass;
use common::queue::{Queue, Want};

use super::super::latency::Samples;
use super::super::report::Report;
use super::stage::Stage;

/// A due time that no measurement reaches.
const NEVER: &str = "at 2199-01-01T00:00:00Z";
/// How long a measurement waits for what should take a second.
const PATIENCE: Duration = Duration::from_mins(2);

fn at(time: DateTime<Utc>) -> String {
    format!("at {}", time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

fn now() -> DateTime<Utc> {
    Clock::system().now()
}

#[expect(clippy::cast_precision_loss, reason = "counts of a report are far below 2^52")]
fn real(count: usize) -> f64 {
    count as f64
}

pub(super) async fn burst(stage: &Stage, report: &mut Report, schedules: usize, due: usize) -> anyhow::Result<()> {
    stage.fill(schedules.saturating_sub(due), |_| NEVER.to_owned()).await?;
    let process = stage.lead().await?;
    // Room for saving those that are due, and for Postgres to settle down.
    let due_at = DateTime::from_timestamp(now().timestamp() + 12, 0).unwrap_or_default();
    stage.fill(due, |_| at(due_at)).await?;
    anyhow::ensure!(
        now() < due_at,
        "saving took too long: this machine is too slow for {due}"
    );
    tokio::time::sleep((due_at - now()).to_std()?).await;
    let begun = Instant::now();
    let mut committed = None;
    while begun.elapsed() < PATIENCE {
        if stage.store.count_fired().await? >= u64::try_from(due)? {
            committed = Some(now() - due_at);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let fired = stage.store.fired_jobs().await?;
    let jobs: Vec<_> = fired.iter().map(|fired| (fired.tenant_id, fired.job_id)).collect();
    let mut queued = None;
    while begun.elapsed() < PATIENCE {
        if stage.queue.unknown(&jobs).await?.is_empty() {
            queued = Some(now() - due_at);
            break;
        }
    }
    let ms = |took: Option<TimeDelta>| took.map_or(f64::NAN, |took| took.as_seconds_f64() * 1_000.0);
    report.number("schedules", real(schedules), "");
    report.number("due together", real(due), "");
    report.number("all jobs after", ms(committed), "ms, committed");
    report.number("all queued after", ms(queued), "ms, known to Redis");
    report.number("memory peak", process.memory_peak_mib(), "MiB");
    let told = format!("{} jobs of {due} due times", fired.len());
    report.check("each once", fired.len() == due && queued.is_some(), told);
    Ok(())
}

pub(super) async fn steady(stage: &Stage, report: &mut Report, rate: usize, seconds: usize) -> anyhow::Result<()> {
    let count = rate * seconds;
    let process = stage.lead().await?;
    let step = TimeDelta::microseconds(1_000_000 / i64::try_from(rate.max(1))?);
    let first = now() + TimeDelta::seconds(5);
    let due = |n: usize| first + step * i32::try_from(n).unwrap_or(i32::MAX);
    stage.fill(count, |n| at(due(n))).await?;
    let until = (due(count) - now()).to_std()? + Duration::from_secs(3);
    let claimed = claim(&stage.queue, until).await?;
    let fired = stage.store.fired_jobs().await?;
    let (mut queued, mut decided) = (Samples::default(), Samples::default());
    for fired in &fired {
        decided.add((fired.fired_at - fired.fire_at).to_std().unwrap_or_default());
        if let Some(at) = claimed.get(&fired.job_id) {
            queued.add((*at - fired.fire_at).to_std().unwrap_or_default());
        }
    }
    let told = format!("{} jobs of {count} due times, {} claimed", fired.len(), claimed.len());
    let is_sound = fired.len() == count && claimed.len() == count;
    report.number("rate", real(rate), "due times/s");
    report.latencies("due → fired", decided);
    report.latencies("due → claimed", queued);
    report.number("memory peak", process.memory_peak_mib(), "MiB");
    report.check("each once", is_sound, told);
    Ok(())
}

/// Claims everything for a while, as a worker with room does, and answers when each came.
async fn claim(queue: &Queue, lasts: Duration) -> anyhow::Result<HashMap<JobId, DateTime<Utc>>> {
    let (worker, began) = (WorkerId::new(), Instant::now());
    let want = Want {
        free: 1_000,
        slot: SlotClass::Light,
        labels: Vec::new(),
        queues: Vec::new(),
        mode: common::queue::Mode::Busy,
    };
    let shard = queue.shards().next().ok_or_else(|| anyhow::anyhow!("no shard"))?;
    let mut waker = queue.waker(shard, SlotClass::Light);
    let mut claimed = HashMap::new();
    while began.elapsed() < lasts {
        let handout = queue.claim(shard, worker, &want).await?;
        let at = now();
        let is_idle = handout.claims.is_empty();
        for claim in handout.claims {
            claimed.entry(claim.job_id).or_insert(at);
        }
        if is_idle {
            waker.wait(Duration::from_millis(50)).await?;
        }
    }
    Ok(claimed)
}

pub(super) async fn idle(stage: &Stage, report: &mut Report, schedules: usize, lasts: Duration) -> anyhow::Result<()> {
    stage.fill(schedules, |_| NEVER.to_owned()).await?;
    let process = stage.lead().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (before, began) = (process.cpu_seconds(), Instant::now());
    tokio::time::sleep(lasts).await;
    let share = (process.cpu_seconds() - before) / began.elapsed().as_secs_f64();
    report.number("schedules", real(schedules), "");
    report.number("one core", share * 100.0, "%");
    report.number("memory peak", process.memory_peak_mib(), "MiB");
    Ok(())
}

pub(super) async fn start(stage: &Stage, report: &mut Report, schedules: usize) -> anyhow::Result<()> {
    stage.fill(schedules.saturating_sub(1), |_| NEVER.to_owned()).await?;
    stage.fill(1, |_| "* * * * * *".to_owned()).await?;
    let began = Instant::now();
    let process = stage.spawn()?;
    while stage.store.count_fired().await? == 0 {
        anyhow::ensure!(began.elapsed() < PATIENCE, "nothing was fired");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    report.number("schedules", real(schedules), "");
    report.number("first fire after", began.elapsed().as_secs_f64() * 1_000.0, "ms");
    report.number("memory peak", process.memory_peak_mib(), "MiB");
    Ok(())
}
