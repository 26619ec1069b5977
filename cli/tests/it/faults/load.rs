//! More than there is room for: jobs, and output that nobody takes.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::{is_full, one_worker, report, script};
use crate::cluster::{Cluster, Engine, KEY, SOON, Sandboxes, Setup, assert_whole, eventually};

const POOL: usize = 5;

/// The numbers of the first processes of a worker's bubblewrap sandboxes: its children's children.
fn inits_below(worker: nix::unistd::Pid) -> Vec<i32> {
    children(worker.as_raw()).into_iter().flat_map(children).collect()
}

fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let listed = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let pids = |text: String| -> Vec<i32> { text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect() };
    listed.flat_map(pids).collect()
}

/// Many jobs at once, to the end, while their `sandboxes` are counted.
async fn many_jobs_in_five_sandboxes(cluster: &mut Cluster, sandboxes: impl Fn(&Cluster) -> usize) {
    let jobs = if is_full() { 1_000 } else { 60 };
    let begun = Instant::now();
    let ids = cluster.api.submit_all(vec![script(0, 1); jobs]).await;
    let mut most = 0;
    let open = "select count(*) from jobs where finished_at is null";
    while cluster.sql(open) != ["0"] {
        assert!(
            begun.elapsed() < Duration::from_mins(15),
            "{:?} are open",
            cluster.sql(open)
        );
        most = most.max(sandboxes(cluster));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate to read")]
    let rate = jobs as f64 / took;
    report(&format!(
        "{jobs} jobs in {POOL} sandboxes: {took:.1} s, {rate:.1} a second; {most} at once"
    ));
    assert!((1..=POOL).contains(&most), "{most} sandboxes at once");
    let counts = "select state, attempt, failures, losses, count(*) from jobs group by 1, 2, 3, 4";
    assert_eq!(cluster.sql(counts), [format!("succeeded|1|0|0|{jobs}")]);
    for id in [&ids[0], &ids[jobs - 1]] {
        let job = cluster.api.job(id).await;
        assert_eq!(job["result"]["stdout"], "begin\nend\n");
        assert_whole(&job, &cluster.api.events(id).await);
    }
    assert!(cluster.workers[0].terminate(SOON).await.success());
}

const SLOTS: &[(&str, &str)] = &[("HOTHOUSE_WORKER__SANDBOX_SLOTS", "16")];

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_at_once_get_their_turn_in_five_sandboxes() {
    let engine = Engine::start();
    let mut cluster = Cluster::start_on(one_worker(POOL, POOL, SLOTS), Some(&engine)).await;
    // What the engine lists: by the time that it tells their inits, such short ones may be gone.
    many_jobs_in_five_sandboxes(&mut cluster, |_| engine.running().len()).await;
    eventually(SOON, "no container is left", || {
        engine.containers().is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_at_once_get_their_turn_in_five_sandboxes_of_bubblewrap() {
    let setup = Setup {
        sandboxes: Sandboxes::Bubblewrap,
        ..one_worker(POOL, POOL, SLOTS)
    };
    let mut cluster = Cluster::start(setup).await;
    let worker = cluster.workers[0].pid();
    many_jobs_in_five_sandboxes(&mut cluster, |_| inits_below(worker).len()).await;
    // The driver's folder, which every sandbox has something of among its mounts.
    let folder = format!("hothouse-bubblewrap-{worker}/");
    let sees_it = |process: &std::fs::DirEntry| {
        let mounts = std::fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        mounts.contains(&folder)
    };
    eventually(SOON, "no process is left", || {
        let mut all = std::fs::read_dir("/proc").unwrap().flatten();
        (!all.any(|process| sees_it(&process))).then_some(())
    })
    .await;
}

/// Resident memory of a process, bytes.
fn resident(pid: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Connections to the API's port that the kernel knows on the API's side.
fn connections(port: u16) -> usize {
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let established = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let (here, state) = (fields.next(), fields.nth(1));
        here.is_some_and(|here| here.ends_with(&local)) && state == Some("01")
    };
    text.lines().filter(established).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_read_cost_a_bounded_amount_and_are_let_go() {
    const SILENT: usize = 50;
    const ASKED: usize = 20;
    let engine = Engine::start();
    let settings = &[("HOTHOUSE_HTTP__HEARTBEAT", "2s"), ("HOTHOUSE_HTTP__WRITE_STALL", "4s")];
    let cluster = Cluster::start_on(one_worker(2, 1, settings), Some(&engine)).await;
    let port: u16 = cluster.api.address.rsplit_once(':').unwrap().1.parse().unwrap();
    // Lines of a hundred bytes: 20 MiB, of which the log keeps what it keeps.
    let line = "x".repeat(99);
    let code = format!("echo begin; i=0; while [ $i -lt 40 ]; do seq -f '{line}%g' 5000; i=$((i+1)); done; echo end");
    let flood = json!({"kind": "exec", "timeout": "120s", "input": {"command": ["sh", "-c", code]}});
    let id = cluster.api.submit(flood).await;
    cluster.api.printed(&id, 1, "begin").await;
    let before = resident(cluster.server.pid());
    let silent: Vec<TcpStream> = (0..SILENT)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let head = format!(
                "GET /api/v1/jobs/{id}/events HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {KEY}\r\n\
                 accept: text/event-stream\r\n\r\n"
            );
            // So often that the kernel's buffers cannot hold the answers.
            stream.write_all(head.repeat(ASKED).as_bytes()).unwrap();
            stream
        })
        .collect();
    eventually(SOON, "they are connected", || {
        (connections(port) >= SILENT).then_some(())
    })
    .await;
    // Nobody else is held up by them: neither the job, nor a reader who reads.
    let job = cluster.api.succeeded(&id, 4 * SOON).await;
    let events = cluster.api.events(&id).await;
    assert!(events.len() > 3, "{job:#}");
    let grown = resident(cluster.server.pid()).saturating_sub(before);
    report(&format!(
        "{SILENT} clients that never read: {} KiB each",
        grown / 1024 / SILENT as u64
    ));
    // Each holds a page of events and what waits to be written, however long its log and however often it asks.
    assert!(grown < (SILENT as u64) << 22, "{grown} bytes more");
    eventually(2 * SOON, "they are let go", || {
        (connections(port) < SILENT / 2).then_some(())
    })
    .await;
    drop(silent);
    let answer = cluster
        .api
        .call(Method::GET, &format!("/jobs/{id}"), None)
        .await
        .unwrap();
    assert!(answer.status().is_success());
}
