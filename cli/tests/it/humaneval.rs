//! The 164 problems of `HumanEval` as real work, through separate processes and real sandboxes: with right solutions while
//! workers are killed and Redis is wiped, and with wrong ones.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Follower, Process, Setup, assert_whole};

const PROBLEMS: usize = 164;

/// For all of them, faults included, on a slow machine with two processors.
const LIMIT: Duration = Duration::from_mins(4);

/// Every twentieth wrong solution never returns.
fn never_returns(index: usize) -> bool {
    index % 20 == 7
}

/// The jobs: each problem with its own solution, or with a wrong one, and its tests.
fn jobs(is_wrong: bool) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/humaneval/HumanEval.jsonl.gz");
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(file).unwrap())
        .read_to_string(&mut text)
        .unwrap();
    let job = |(index, line): (usize, &str)| {
        let problem: BTreeMap<String, String> = serde_json::from_str(line).unwrap();
        let body = match (is_wrong, never_returns(index)) {
            (false, _) => problem["canonical_solution"].as_str(),
            (true, false) => "    return None\n",
            (true, true) => "    while True: pass\n",
        };
        let (prompt, test, entry_point) = (&problem["prompt"], &problem["test"], &problem["entry_point"]);
        let code = format!("{prompt}{body}\n{test}\ncheck({entry_point})\nprint('passed', flush=True)\n");
        let timeout = if is_wrong { "5s" } else { "20s" };
        json!({"kind": "exec", "timeout": timeout, "input": {"language": "python", "code": code}})
    };
    let jobs: Vec<Value> = text.lines().enumerate().map(job).collect();
    assert_eq!(jobs.len(), PROBLEMS);
    jobs
}

/// Waits until so many jobs have ended.
async fn ended(cluster: &Cluster, count: usize, since: Instant) {
    let query = "select count(*) from jobs where finished_at is not null";
    loop {
        let ended: usize = cluster.sql(query)[0].parse().unwrap();
        if ended >= count {
            return;
        }
        assert!(since.elapsed() < LIMIT, "{ended} of {count} have ended");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Kills a worker that runs something, and starts it again.
async fn kill(cluster: &mut Cluster, index: usize, since: Instant) {
    let running = |name: &str| {
        format!(
            "select count(*) from jobs join workers on workers.id = jobs.worker_id
             where state = 'running' and name = '{name}'"
        )
    };
    while cluster.sql(&running(cluster.workers[index].name())) == ["0"] {
        assert!(since.elapsed() < LIMIT, "the worker runs nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let worker: &mut Process = &mut cluster.workers[index];
    worker.kill();
    worker.start();
}

/// One row for each, ended; one attempt that ended it; its log whole.
async fn assert_all(cluster: &Cluster, ids: &[String]) -> Vec<Value> {
    let jobs = cluster.api.jobs().await;
    assert_eq!(jobs.len(), PROBLEMS);
    let settled = "select job_id from attempts where outcome in ('succeeded', 'failed', 'cancelled')";
    let mut settled = cluster.sql(settled);
    settled.sort_unstable();
    let mut expected = ids.to_vec();
    expected.sort_unstable();
    assert_eq!(settled, expected, "one attempt ends each job");
    let mut whole = Vec::new();
    for id in ids {
        let job = cluster.api.job(id).await;
        assert_whole(&job, &cluster.api.events(id).await);
        whole.push(job);
    }
    whole
}

#[expect(clippy::print_stderr, reason = "measurements of a test")]
fn took(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn all_succeed_while_workers_are_killed_and_redis_is_wiped() {
    let setup = Setup {
        warm: 4,
        ..Setup::default()
    };
    let mut cluster = Cluster::start(setup).await;
    let ids = cluster.api.submit_all(jobs(false)).await;
    let begun = Instant::now();
    let followed = [&ids[0], &ids[60], &ids[120], &ids[PROBLEMS - 1]];
    let followers = followed.map(|id| (id, Follower::start(&cluster.api, id)));

    ended(&cluster, 30, begun).await;
    kill(&mut cluster, 0, begun).await;
    took("first worker killed", begun);
    ended(&cluster, 70, begun).await;
    cluster.redis.flush();
    took("Redis wiped", begun);
    ended(&cluster, 110, begun).await;
    kill(&mut cluster, 1, begun).await;
    took("second worker killed", begun);
    ended(&cluster, PROBLEMS, begun).await;
    took("all have ended", begun);

    let jobs = assert_all(&cluster, &ids).await;
    for job in &jobs {
        assert_eq!(
            (&job["state"], &job["result"]["stdout"]),
            (&json!("succeeded"), &json!("passed\n")),
            "{job:#}"
        );
    }
    let sum = |field: &str| jobs.iter().map(|job| job[field].as_u64().unwrap()).sum::<u64>();
    assert!(sum("losses") >= 2, "each kill took a running job's worker");
    assert_eq!(sum("failures"), 0);
    for (id, follower) in followers {
        assert_eq!(follower.finish(LIMIT).await, cluster.api.events(id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_solutions_all_fail_and_none_hangs() {
    let setup = Setup {
        warm: 4,
        ..Setup::default()
    };
    let cluster = Cluster::start(setup).await;
    let ids = cluster.api.submit_all(jobs(true)).await;
    let begun = Instant::now();
    ended(&cluster, PROBLEMS, begun).await;
    took("all have ended", begun);

    for (index, job) in assert_all(&cluster, &ids).await.iter().enumerate() {
        let code = if never_returns(index) {
            "timeout"
        } else {
            "nonzero_exit"
        };
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&json!("failed"), &json!(code)),
            "{job:#}"
        );
        assert_eq!(
            (&job["attempt"], &job["failures"]),
            (&json!(1), &json!(1)),
            "a program's own answer is not repeated"
        );
        let is_empty = job["result"]["stderr"].as_str().unwrap().is_empty();
        assert_eq!(is_empty, never_returns(index), "{job:#}");
    }
}
