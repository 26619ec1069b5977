//! What there is when the storm is over: rows, logs, and what should not be there any more.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::follow::event;
use super::history::{Attempt, Event, Row};
use super::rig::{Rig, SANDBOXES_MAX};
use super::{say, witness};
use crate::cluster::{KEY, eventually};
use crate::health;

/// How long everything may take to come to rest: what a worker left that was killed at its start is removed when it was not
/// heard of for a minute.
const REST: Duration = Duration::from_secs(100);

/// Logs that are read at once.
const READERS: usize = 8;

/// Waits until every job has ended; answers what has not when it takes too long.
pub(super) async fn drain(rig: &Rig, limit: Duration) -> Vec<String> {
    let open = "select count(*) from jobs where state not in ('succeeded', 'failed', 'cancelled')";
    let (begun, mut told) = (Instant::now(), Instant::now());
    loop {
        let count = rig.try_sql(open).and_then(|rows| rows.first()?.parse::<usize>().ok());
        if count == Some(0) {
            return Vec::new();
        }
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            say(&format!(
                "draining: {} open after {:.0} s",
                count.unwrap_or(0),
                begun.elapsed().as_secs_f64()
            ));
        }
        if begun.elapsed() > limit {
            let rows =
                "select concat_ws(' ', id, state, attempt, worker_id, queued_at, due_at, class, concurrency_key) from
                jobs where state not in ('succeeded', 'failed', 'cancelled') order by id limit 20";
            return rig.sql(rows);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn read<T: DeserializeOwned>(lines: &[String]) -> Vec<T> {
    lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Every row of `jobs`.
pub(super) fn rows(rig: &Rig) -> Vec<Row> {
    read(&rig.sql(
        "select json_build_object('id', id, 'token', metadata->>'token', 'state', state, 'attempt', attempt,
            'failures', failures, 'losses', losses, 'max_attempts', max_attempts, 'seq', seq, 'error_code', error_code,
            'stdout', convert_from(result, 'UTF8')::json->>'stdout') from jobs",
    ))
}

/// Every row of `attempts`.
pub(super) fn attempts(rig: &Rig) -> Vec<Attempt> {
    read(&rig.sql(
        "select json_build_object('job_id', job_id, 'attempt', attempt, 'worker_id', worker_id, 'started_at', started_at,
            'finished_at', finished_at, 'outcome', outcome) from attempts",
    ))
}

/// The event log of every job, as the API tells it.
pub(super) async fn logs(rig: &Rig, rows: &[Row]) -> HashMap<Uuid, Vec<Event>> {
    let tenants: HashMap<Uuid, String> = rig
        .sql("select concat_ws(' ', id, tenant_id) from jobs")
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(id, tenant)| (id.parse().unwrap(), tenant.to_owned()))
        .collect();
    let http = reqwest::Client::builder().timeout(REST).build().unwrap();
    let read = stream::iter(rows).map(|row| {
        let (http, address, tenant) = (&http, &rig.apis[0].address, &tenants[&row.id]);
        async move {
            let mut log = Vec::new();
            loop {
                let after = log.last().map_or(0, |event: &Event| event.seq);
                let url = format!("{address}/api/v1/jobs/{}/events?after={after}", row.id);
                let request = http.get(url).bearer_auth(KEY).header("X-Tenant-Id", tenant);
                let page: Value = request.send().await.unwrap().json().await.unwrap();
                let data = page["data"].as_array().unwrap_or_else(|| panic!("{page:#}"));
                log.extend(
                    data.iter()
                        .map(|one| event(one["type"].as_str().unwrap_or_default(), one.clone())),
                );
                if page["next_cursor"].is_null() || data.is_empty() {
                    return (row.id, log);
                }
            }
        }
    });
    read.buffer_unordered(READERS).collect().await
}

/// What is there at rest and should not be: everything but what an idle system holds.
pub(super) async fn left(rig: &Arc<Rig>, prefix: &str) -> Vec<String> {
    let begun = Instant::now();
    let mut left = look(rig, prefix).await;
    while !left.is_empty() && begun.elapsed() < REST {
        tokio::time::sleep(Duration::from_millis(500)).await;
        left = look(rig, prefix).await;
    }
    left
}

async fn look(rig: &Rig, prefix: &str) -> Vec<String> {
    let live = live_workers(rig).await;
    let mut left = keys(rig, &live).await;
    let programs = witness::programs(prefix).into_iter();
    left.extend(programs.map(|(_, program)| format!("a program of {} runs", program.token)));
    left.extend(sandboxes(rig, &live));
    left.extend(folders(rig, &live));
    let stuck = "select pid, query from pg_stat_activity where state like 'idle in transaction%'
        and state_change < now() - interval '1 s'";
    left.extend(rig.sql(stuck).iter().map(|row| format!("an open transaction: {row}")));
    for process in &rig.processes {
        let mut process = process.lock().await;
        if let Some(status) = process.ended() {
            left.push(format!("{} ended by itself: {status}", process.name()));
        }
    }
    left
}

/// The workers that run: each one's process and its newest id.
async fn live_workers(rig: &Rig) -> Vec<(i32, String)> {
    let mut live = Vec::new();
    for process in &rig.processes {
        let process = process.lock().await;
        let newest = format!(
            "select id from workers where name = '{}' order by started_at desc limit 1",
            process.name()
        );
        if let Some(id) = rig.sql(&newest).pop() {
            live.push((process.pid().as_raw(), id));
        }
    }
    live
}

/// An idle system holds each shard's generation, its wake entry, what workers ask for and how far they are, and the settings
/// of tenants and queues; beside these the logs of ended jobs, and what a dead worker was told, both until they expire.
async fn keys(rig: &Rig, live: &[(i32, String)]) -> Vec<String> {
    let redis = rig.redis.lock().await;
    let mut left = Vec::new();
    for key in redis.lines(&["--scan"]) {
        let name = key.splitn(3, ':').nth(2).unwrap_or_default();
        let expires = || {
            redis
                .lines(&["TTL", &key])
                .first()
                .is_some_and(|ttl| ttl.parse::<i64>().is_ok_and(|ttl| ttl >= 0))
        };
        let is_right = match name.split_once(':') {
            None => matches!(name, "gen" | "asked" | "views" | "weights" | "paused"),
            Some(("wake", _)) => true,
            Some(("log", _)) => expires(),
            Some(("cancel", worker)) => live.iter().all(|(_, id)| id != worker) && expires(),
            Some(_) => false,
        };
        if !is_right {
            let kind = redis.lines(&["TYPE", &key]);
            left.push(format!("Redis key {key} ({})", kind.join("")));
        }
    }
    left
}

/// Every sandbox has the rig's folder in its command line; it belongs to a worker that runs, and that has no more of them
/// than its ceiling: after a load as many may stay warm.
fn sandboxes(rig: &Rig, live: &[(i32, String)]) -> Vec<String> {
    let mut left = Vec::new();
    let mut warm: HashMap<i32, usize> = HashMap::new();
    for parent in sandbox_parents(rig) {
        if live.iter().any(|(pid, _)| *pid == parent) {
            *warm.entry(parent).or_default() += 1;
        } else {
            left.push(format!(
                "a sandbox whose parent is process {parent}, no worker that runs"
            ));
        }
    }
    let more = warm.into_iter().filter(|(_, count)| *count > SANDBOXES_MAX);
    left.extend(more.map(|(pid, count)| format!("{count} sandboxes of the idle worker with process {pid}")));
    left
}

/// The parents of the processes that hold a sandbox.
fn sandbox_parents(rig: &Rig) -> Vec<i32> {
    let folder = rig.folder.join("tmp");
    let folder = folder.as_os_str().as_encoded_bytes();
    let holds = |line: &[u8]| line.starts_with(b"bwrap\0") && line.windows(folder.len()).any(|part| part == folder);
    let parent = |path: &std::path::Path| witness::stat(path)?.get(1)?.parse::<i32>().ok();
    let found = witness::commands().into_iter().filter(|(_, line)| holds(line));
    let found: Vec<_> = found
        .filter_map(|(path, _)| Some((pid(&path)?, parent(&path)?)))
        .collect();
    // The one that waits outside has another inside with the same command line for a moment.
    let own: BTreeSet<i32> = found.iter().map(|(pid, _)| *pid).collect();
    found
        .iter()
        .map(|(_, parent)| *parent)
        .filter(|parent| !own.contains(parent))
        .collect()
}

fn pid(process: &std::path::Path) -> Option<i32> {
    process.file_name()?.to_str()?.parse().ok()
}

/// Files of workers that do not run.
fn folders(rig: &Rig, live: &[(i32, String)]) -> Vec<String> {
    let entries = std::fs::read_dir(rig.folder.join("tmp"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            !live
                .iter()
                .any(|(pid, _)| *name == format!("hothouse-bubblewrap-{pid}"))
        })
        .map(|name| format!("the file {name} of a dead process"))
        .collect()
}

/// When everything has stopped, nothing of it runs.
pub(super) async fn left_behind(rig: &Rig) -> Vec<String> {
    let begun = Instant::now();
    while !sandbox_parents(rig).is_empty() && begun.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = sandbox_parents(rig).into_iter();
    left.map(|parent| format!("a sandbox after the end of all workers, child of {parent}"))
        .collect()
}

/// Lines that no process should write, whatever goes wrong.
pub(super) fn cries(rig: &Rig) -> Vec<String> {
    let logs = std::fs::read_dir(&rig.folder).into_iter().flatten().flatten();
    let is_ours = |name: &str| ["api", "worker", "scheduler"].iter().any(|one| name.starts_with(one));
    let mut found = Vec::new();
    for entry in logs.filter(|entry| is_ours(&entry.file_name().to_string_lossy())) {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let bad = text
            .lines()
            .filter(|line| line.contains("panicked at") || line.contains(" ERROR "));
        found.extend(bad.map(|line| format!("{}: {line}", entry.file_name().to_string_lossy())));
    }
    found
}

/// Waits until everybody says that he can work.
pub(super) async fn ready(rig: &Rig) {
    for api in &rig.apis {
        api.ready().await;
    }
    let redis = rig.redis.lock().await;
    eventually(REST, "Redis is built", || redis.is_open().then_some(())).await;
    drop(redis);
    for address in rig.health_addresses().await {
        health::says(&address, 200, &[]).await;
    }
}
