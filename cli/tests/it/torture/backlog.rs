//! A wipe of Redis under a long backlog: most of it is in Postgres alone, and all of it flows again.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::rig::Rig;
use super::{number, say};
use crate::cluster::eventually;

/// Jobs of every run of the tests; `make torture BACKLOG=…` sets another number.
const JOBS: u64 = 30_000;

/// After a wipe everything flows within this.
const FLOWS: Duration = Duration::from_mins(1);

/// The backlog's jobs are of so many tenants.
const TENANTS: u64 = 4;

/// What Redis may hold beyond an empty one's memory: for each tenant, queue and class 10,000 jobs at most, and not 1 KiB
/// for each.
const REDIS_BYTES_MAX: u64 = TENANTS * 10_000 * 1_024;

#[tokio::test(flavor = "multi_thread")]
async fn a_wipe_under_a_backlog_is_over_within_a_minute() {
    let jobs = number("HOTHOUSE_TORTURE_BACKLOG").unwrap_or(JOBS);
    let rig = Rig::start().await;
    let empty = memory(&rig).await;
    post(&rig, "/queues/bulk/pause").await;
    let begun = Instant::now();
    insert(&rig, jobs);
    say(&format!(
        "backlog: {jobs} jobs inserted in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    rig.redis.lock().await.flush();
    rebuilt(&rig, "with what was inserted behind its back").await;
    let full = memory(&rig).await;
    rig.redis.lock().await.flush();
    let wiped = Instant::now();
    rebuilt(&rig, "after the wipe").await;
    let open = wiped.elapsed();
    post(&rig, "/queues/bulk/resume").await;
    let ended = || {
        rig.sql("select count(*) from jobs where state = 'succeeded'")[0]
            .parse::<u64>()
            .unwrap()
    };
    // Every tenant's, so that nobody waits for another's backlog.
    let tenants = "select count(distinct tenant_id) from jobs where state = 'succeeded'";
    eventually(FLOWS, "jobs of every tenant run", || {
        (rig.sql(tenants) == [TENANTS.to_string()]).then_some(())
    })
    .await;
    let flowing = wiped.elapsed();
    let (before, since) = (ended(), Instant::now());
    // Past what Redis held: the rest is paged in while it flows.
    let wanted = (before + 2 * 10_000 * TENANTS).min(jobs);
    let all = wanted == jobs;
    eventually(5 * FLOWS, "the spilled ones run too", || {
        (ended() >= wanted).then_some(())
    })
    .await;
    let after = ended();
    let rate = f64::from(u32::try_from(after - before).unwrap()) / since.elapsed().as_secs_f64();
    say(&format!(
        "backlog: {jobs} jobs, Redis {:.1} MiB empty, {:.1} MiB full; open {:.1} s after the wipe, every tenant's jobs run \
         after {:.1} s; then {rate:.0} jobs a second, {} of them spilled before",
        mib(empty),
        mib(full),
        open.as_secs_f64(),
        flowing.as_secs_f64(),
        if all { "some" } else { "most" },
    ));
    assert!(flowing < FLOWS, "flowing after {flowing:?}");
    assert!(full - empty < REDIS_BYTES_MAX, "{empty} bytes empty, {full} full");
    let wrong = rig.sql("select count(*) from jobs where attempt > 1 or state = 'failed'");
    assert_eq!(wrong, ["0"]);
    assert_eq!(rig.stop().await, Vec::<String>::new());
    drop(std::fs::remove_dir_all(&rig.folder));
}

/// Rows as submissions make them, without the hour that so many submissions would take on a small machine.
fn insert(rig: &Rig, jobs: u64) {
    rig.sql(&format!(
        "insert into tenants (id, name, created_at)
            select gen_random_uuid(), 'bulk-' || n, now() from generate_series(1, {TENANTS}) n"
    ));
    rig.sql(&format!(
        "with t as (select array_agg(id) as ids from tenants where name like 'bulk-%'), made as (
         insert into jobs (id, tenant_id, kind, queue, class, labels, priority, state, max_attempts, backoff_initial_ms,
            backoff_factor, backoff_max_ms, retry_on, timeout_ms, created_at, queued_at, seq, input, metadata)
         select encode(set_byte(set_byte(decode(lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0') ||
                right(replace(gen_random_uuid()::text, '-', ''), 20), 'hex'), 6, 112), 8, 128), 'hex')::uuid,
            t.ids[1 + n % {TENANTS}], 'noop', 'bulk', 'light', '{{}}', 5, 'queued', 3, 1000, 2, 300000, '{{}}', 60000,
            now(), now(), 1, '{{}}', '{{}}'
         from generate_series(1, {jobs}) n, t returning tenant_id, queue, class, priority, id)
         insert into queued_jobs select tenant_id, queue, class, priority, id from made"
    ));
    rig.sql("analyze jobs");
}

async fn rebuilt(rig: &Rig, what: &str) {
    let redis = rig.redis.lock().await;
    // A moment after the wipe nobody knows of it yet, and it is not open either.
    eventually(FLOWS, what, || redis.is_open().then_some(())).await;
}

/// Bytes that Redis uses.
async fn memory(rig: &Rig) -> u64 {
    let lines = rig.redis.lock().await.lines(&["INFO", "memory"]);
    let used = lines.iter().find_map(|line| line.strip_prefix("used_memory:"));
    used.unwrap().trim().parse().unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "a number for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

async fn post(rig: &Rig, path: &str) {
    let answer = rig.apis[0].call(Method::POST, path, Some(&json!({}))).await.unwrap();
    assert!(
        answer.status().is_success(),
        "{:#}",
        answer.json::<Value>().await.unwrap()
    );
}
