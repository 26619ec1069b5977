//! What one sandbox does by itself, without queue or worker: files into it, programs in it, output out of it, and what it
//! weighs while it does nothing. Part of `hothouse bench sandbox`, each beside what the machine or the engine does bare.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::task::JoinSet;
use uuid::Uuid;
use worker::sandbox::{self, GetFiles, Output, PutFiles, RunSpec, Sandbox};

use super::engine::Engine;
use super::latency::Samples;
use super::report::Report;

/// One file of a megabyte, which cannot be made smaller.
const ONE_FILE: &str = "head -c 1000000 /dev/urandom >file";

/// A megabyte in a hundred files.
const MANY_FILES: &str = "head -c 1000000 /dev/urandom | split -a 3 -b 10000 - file";

/// Bytes that a program prints to see how fast they come.
const OUTPUT_BYTES: u64 = 500_000_000;

/// Starts at once while the idle ones are made.
const AT_ONCE: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Times of each.
    pub(super) times: u64,
    /// Sandboxes that do nothing; 0 leaves them out.
    pub(super) idle: u64,
    /// What the engine starts.
    pub(super) image: &'a str,
}

/// Measures all of it, over a Docker engine.
pub(super) async fn run(asked: Asked<'_>, report: &mut Report) -> anyhow::Result<()> {
    let engine = match Engine::open(asked.image).await {
        Ok(engine) => engine,
        Err(error) => {
            report.remark("alone", format!("not measured: {error:#}"));
            return Ok(());
        }
    };
    let (id, sandbox) = started(&engine).await?;
    files(&sandbox, asked.times, report).await?;
    programs(&sandbox, (id, asked.times), report).await?;
    output(&sandbox, report).await?;
    ended(&engine, id, sandbox).await?;
    if asked.idle > 0 {
        idle(&engine, asked.idle, report).await?;
    }
    Ok(())
}

async fn started(engine: &Engine) -> anyhow::Result<(Uuid, Sandbox)> {
    let (id, pipe) = engine.start().await?;
    Ok((id, Sandbox::connect(pipe, &sandbox::Settings::default()).await?))
}

async fn ended(engine: &Engine, id: Uuid, sandbox: Sandbox) -> anyhow::Result<()> {
    sandbox.close().await;
    engine.destroy(id).await
}

async fn files(sandbox: &Sandbox, times: u64, report: &mut Report) -> anyhow::Result<()> {
    for (name, packing, script) in [
        ("unpack 1 MB", "pack 1 MB", ONE_FILE),
        ("unpack 1 MB, 100", "pack 1 MB, 100", MANY_FILES),
    ] {
        sandbox.reset().await?;
        shell(sandbox, script).await?;
        let (mut packed, mut unpacked, mut archive) = (Samples::default(), Samples::default(), Bytes::new());
        for _ in 0..times {
            let begun = Instant::now();
            archive = sandbox.get_files(GetFiles::everything(1 << 21, 1_000)).await?.archive;
            packed.add(begun.elapsed());
        }
        for number in 0..times {
            // Into a folder that is not there, as before a job.
            let put = PutFiles {
                dest: format!("to-{number}"),
                ..PutFiles::default()
            };
            let begun = Instant::now();
            sandbox.put_files(archive.clone(), put).await?;
            unpacked.add(begun.elapsed());
            shell(sandbox, "rm -r to-*").await?;
        }
        report.latencies(name, unpacked);
        report.latencies(packing, packed);
    }
    Ok(())
}

/// A program that does nothing, from the request to its process and to its end.
async fn programs(sandbox: &Sandbox, (id, times): (Uuid, u64), report: &mut Report) -> anyhow::Result<()> {
    let (mut ours, mut exec, mut bare) = (Samples::default(), Samples::default(), Samples::default());
    let mut begins = Samples::default();
    let container = format!("hothouse-{id}");
    for _ in 0..times {
        let begun = Instant::now();
        begins.add(shell(sandbox, "").await?);
        ours.add(begun.elapsed());
        let begun = Instant::now();
        quietly(&["sh", "-c", ""]).await?;
        bare.add(begun.elapsed());
        let begun = Instant::now();
        quietly(&["docker", "exec", &container, "sh", "-c", ""]).await?;
        exec.add(begun.elapsed());
    }
    report.latencies("sandbox → process", begins);
    report.latencies("sh, in a sandbox", ours);
    report.latencies("sh, docker exec", exec);
    report.latencies("sh, bare process", bare);
    Ok(())
}

/// How fast the output of a program comes.
async fn output(sandbox: &Sandbox, report: &mut Report) -> anyhow::Result<()> {
    let count = OUTPUT_BYTES.to_string();
    let begun = Instant::now();
    let (came, _) = program(sandbox, &["head", "-c", &count, "/dev/zero"]).await?;
    ensure!(came == OUTPUT_BYTES, "{came} bytes came");
    report.number(
        "output",
        megabytes(came) / begun.elapsed().as_secs_f64(),
        "MB/s of a program",
    );
    let begun = Instant::now();
    let mut head = Command::new("head")
        .args(["-c", &count, "/dev/zero"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdout = head.stdout.take().context("no output")?;
    let (mut piece, mut came) = (vec![0; 1 << 16], 0_u64);
    loop {
        match stdout.read(&mut piece).await? {
            0 => break,
            read => came += u64::try_from(read)?,
        }
    }
    let bare = megabytes(came) / begun.elapsed().as_secs_f64();
    report.number("output, bare", bare, "MB/s through a pipe");
    Ok(())
}

/// What sandboxes that do nothing take of the machine's memory: their processes, the engine's part and the kernel's.
async fn idle(engine: &Engine, count: u64, report: &mut Report) -> anyhow::Result<()> {
    let before = taken().await?;
    let mut sandboxes = Vec::new();
    let mut starts = JoinSet::new();
    for number in 0..count {
        let engine = engine.clone();
        starts.spawn(async move { started(&engine).await });
        if starts.len() >= AT_ONCE || number + 1 == count {
            while let Some(one) = starts.join_next().await {
                sandboxes.push(one??);
            }
        }
    }
    let after = taken().await?;
    for (id, sandbox) in sandboxes {
        ended(engine, id, sandbox).await?;
    }
    let each = |after: u64, before: u64| megabytes(after.saturating_sub(before)) / megabytes(count * 1_000_000);
    report.number(
        "idle sandbox",
        each(after.processes + after.kernel, before.processes + before.kernel),
        &format!("MB each of {count}, everything counted"),
    );
    report.number(
        "of it, processes",
        each(after.processes, before.processes),
        "MB of init and the engine",
    );
    Ok(())
}

/// Bytes in use.
struct Taken {
    /// By inits and by all of the engine, what they share counted once.
    processes: u64,
    /// By the kernel itself: stacks, tables, inodes, cgroups.
    kernel: u64,
}

/// What is taken, once it does not change any more.
async fn taken() -> anyhow::Result<Taken> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let is_counted =
        |name: &str| ["init", "hothouse-init", "dockerd"].contains(&name) || name.starts_with("containerd");
    let mut processes = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if is_counted(name.trim_end()) {
            // One that has just ended has none.
            let rollup = fs::read_to_string(process.path().join("smaps_rollup")).unwrap_or_default();
            processes += kilobytes(&rollup, "Pss:").unwrap_or(0);
        }
    }
    let memory = fs::read_to_string("/proc/meminfo")?;
    let parts = ["Slab:", "KernelStack:", "PageTables:", "Percpu:", "Shmem:"];
    let kernel = parts.iter().filter_map(|part| kilobytes(&memory, part)).sum();
    Ok(Taken { processes, kernel })
}

/// The bytes that a line of the kernel's says in kibibytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Runs a script to its end; the time from the request to its process.
async fn shell(sandbox: &Sandbox, script: &str) -> anyhow::Result<Duration> {
    Ok(program(sandbox, &["sh", "-c", script]).await?.1)
}

/// Runs a program to its end; the bytes that it printed, and the time from the request to its process.
async fn program(sandbox: &Sandbox, argv: &[&str]) -> anyhow::Result<(u64, Duration)> {
    let mut spec = RunSpec::new(argv.iter().copied());
    spec.env = vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())];
    (spec.keep_bytes, spec.kill_bytes) = (None, None);
    let asked = Instant::now();
    let mut running = sandbox.run(spec).await?;
    let begins = asked.elapsed().saturating_sub(running.began_ago());
    let mut came = 0;
    while let Some(output) = running.next().await {
        if let Output::Stdout(data) | Output::Stderr(data) = output {
            came += u64::try_from(data.len())?;
        }
    }
    let exit = running.wait().await?;
    ensure!(exit.is_success(), "{argv:?} did not do well: {exit:?}");
    Ok((came, begins))
}

async fn quietly(argv: &[&str]) -> anyhow::Result<()> {
    let (program, arguments) = argv.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    ensure!(command.status().await?.success(), "{argv:?} did not do well");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
