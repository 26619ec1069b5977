//! More than its share of memory, processes, disk, time or output.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::bench::{Bench, Done, Error, python, shell, still_serves};
use super::{Attempt, Group, Probe, Verdict};
use crate::sandbox::{Exit, GetFiles, Input, Oom, RunSpec, Sandbox};

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);

/// Those that a program can judge itself.
pub(super) const PROBES: &[Probe] = &[
    Probe::new(
        "raise the limit of open files",
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\ntry: resource.setrlimit(resource.RLIMIT_NOFILE, (hard + 1, hard + 1))\nexcept ValueError as e: held(e)",
    ),
    Probe::new(
        "open files without end",
        "kept = []\nwhile len(kept) < 1000000: kept.append(os.open('/dev/null', os.O_RDONLY))",
    ),
    Probe::new(
        "make pipes without end",
        "kept = []\nwhile len(kept) < 1000000: kept.append(os.pipe())",
    ),
    Probe::new(
        "enlarge a pipe without end",
        "kept = []\nwhile len(kept) < 100000:\n  r, w = os.pipe(); kept += [r, w]; fcntl.fcntl(w, 1031, 64 << 20)",
    ),
    Probe::new(
        "start threads without end",
        "import _thread\nkept = []\ntry:\n  while len(kept) < 20000: t = threading.Thread(target=time.sleep, args=(5,), daemon=True); t.start(); kept.append(t)\nexcept RuntimeError as e: print('HELD %d threads: %s' % (len(kept), e), flush=True); os._exit(0)",
    ),
    Probe::new(
        "start processes without end",
        "kept = []\ntry:\n  while len(kept) < 20000:\n    pid = os.fork()\n    if pid == 0: time.sleep(20); os._exit(0)\n    kept.append(pid)\nexcept OSError as e: held('%d processes: %s' % (len(kept), e))",
    ),
    Probe::new(
        "leave zombies without end",
        "kept = []\nwhile len(kept) < 20000:\n  pid = os.fork()\n  if pid == 0: os._exit(0)\n  kept.append(pid)",
    ),
    Probe::new(
        "fill the workspace",
        "with open('/workspace/full', 'wb') as f:\n  for _ in range(1 << 16): f.write(bytes(1 << 20))",
    ),
    Probe::new(
        "fill the folder for temporary files",
        "with open('/tmp/full', 'wb') as f:\n  for _ in range(1 << 16): f.write(bytes(1 << 20))",
    ),
    Probe::new(
        "fill the shared memory",
        "with open('/dev/shm/full', 'wb') as f:\n  for _ in range(1 << 16): f.write(bytes(1 << 20))",
    ),
    Probe::new(
        "use up the names of the workspace",
        "os.mkdir('/workspace/many')\nfor n in range(5000000): os.close(os.open('/workspace/many/%d' % n, os.O_CREAT))",
    ),
    Probe::new(
        "reserve more disk than there is",
        "fd = os.open('/workspace/reserved', os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, 1 << 44)",
    ),
    Probe::new(
        "lock memory",
        "checked(libc.mlockall(1 | 2)); m = mmap.mmap(-1, 256 << 20); m.write(bytes(256 << 20))",
    ),
    Probe::new(
        "queue signals without end",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\nfor n in range(5000000): checked(libc.sigqueue(os.getpid(), 40, None))",
    ),
    Probe::new(
        "make segments of memory without end",
        "for n in range(100000): checked(libc.shmget(0, ctypes.c_size_t(1 << 46), 0o1600))",
    ),
];

/// Those that show from outside.
pub(super) const ATTEMPTS: &[Attempt] = &[
    resource("take more memory than it has", |b| {
        ends(
            b,
            "m = []\nwhile True: m.append(bytearray(1 << 24))",
            LONG,
            out_of_memory,
        )
        .boxed()
    }),
    resource("take more memory in a child", |b| {
        ends(b, "import os, subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-c', 'm = []\\nwhile True: m.append(bytearray(1 << 24))']).returncode and 3)", LONG, out_of_memory).boxed()
    }),
    resource("take memory by a map", |b| {
        ends(
            b,
            "import mmap\nm = mmap.mmap(-1, 64 << 30)\nfor at in range(0, 64 << 30, 4096): m[at] = 1",
            LONG,
            out_of_memory,
        )
        .boxed()
    }),
    resource("spin past its time", |b| {
        ends(b, "while True: pass", SHORT, timed_out).boxed()
    }),
    resource("sleep past its time", |b| {
        ends(b, "import time\ntime.sleep(1000)", SHORT, timed_out).boxed()
    }),
    resource("ignore the end of its time", |b| {
        ends(b, "import signal, time\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\nwhile True: time.sleep(1)", SHORT, timed_out).boxed()
    }),
    resource("stop itself and wait", |b| {
        ends(
            b,
            "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
            SHORT,
            timed_out,
        )
        .boxed()
    }),
    resource("become another program without end", |b| {
        ends(b, "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import os, sys; os.execv(\"/bin/sh\", [\"sh\", \"-c\", \"while :; do :; done\"])'])", SHORT, timed_out).boxed()
    }),
    resource("write without end", |b| {
        ends(
            b,
            "import os\nwhile True: os.write(1, bytes(1 << 16))",
            LONG,
            output_limit,
        )
        .boxed()
    }),
    resource("complain without end", |b| {
        ends(
            b,
            "import os\nwhile True: os.write(2, b'x\\n' * 4096); os.write(1, b'y')",
            LONG,
            output_limit,
        )
        .boxed()
    }),
    resource("write one line of 50 MB", |b| {
        ends(
            b,
            "import os\nfor _ in range(50): os.write(1, b'x' * (1 << 20))",
            LONG,
            cut,
        )
        .boxed()
    }),
    resource("close its output and go on", |b| {
        ends(
            b,
            "import os, time\nos.close(1); os.close(2); time.sleep(0.2)",
            LONG,
            fine,
        )
        .boxed()
    }),
    resource("never read its input", |b| never_reads(b).boxed()),
    resource("leave a daemon", |b| {
        leaves(
            b,
            "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(1000)\n  os._exit(0)",
        )
        .boxed()
    }),
    resource("leave a stopped process", |b| {
        leaves(
            b,
            "import os, signal\npid = os.fork()\nif pid == 0: os.kill(os.getpid(), signal.SIGSTOP)\n",
        )
        .boxed()
    }),
    resource("leave a fork bomb", |b| {
        leaves(b, "import os, time\nif os.fork() == 0:\n  os.setsid()\n  while True:\n    try: os.fork()\n    except OSError: pass\ntime.sleep(0.5)").boxed()
    }),
    resource("use more processors than it has", |b| spins_wide(b).boxed()),
    resource("nest folders without end", |b| nests(b).boxed()),
];

const fn resource(name: &'static str, act: super::HostAttempt) -> Attempt {
    Attempt::host(Group::Resources, name, act)
}

type Judge = fn(&Exit) -> Option<&'static str>;

fn out_of_memory(exit: &Exit) -> Option<&'static str> {
    // A Python that is refused memory says so itself; where the kernel kills, it is told.
    let refused = exit.oom != Oom::Yes && exit.code.is_some_and(|code| code != 0);
    match exit.oom {
        Oom::Yes => Some("killed for its memory"),
        _ if refused || exit.signal == Some(9) => Some("refused by the kernel"),
        _ => None,
    }
}

fn timed_out(exit: &Exit) -> Option<&'static str> {
    exit.timed_out.then_some("ended at its time")
}

fn output_limit(exit: &Exit) -> Option<&'static str> {
    exit.output_limit.then_some("ended at its limit of output")
}

fn cut(exit: &Exit) -> Option<&'static str> {
    (exit.is_success() && exit.stdout.dropped > 0).then_some("head and tail kept, the rest counted")
}

fn fine(exit: &Exit) -> Option<&'static str> {
    exit.is_success().then_some("it ran to its end, and that was told")
}

async fn ends(bench: &Bench, code: &str, timeout: Duration, judge: Judge) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let begun = Instant::now();
    let Done { exit, .. } = python(&sandbox, code, timeout).await?;
    let verdict = match judge(&exit) {
        Some(how) => Verdict::Held(format!("{how}, after {} ms", begun.elapsed().as_millis())),
        // It had the time that the attempt got, not more: what the limit would have done was not seen.
        None if exit.timed_out => Verdict::Unclear(format!("it ended at its time: {exit:?}")),
        None => Verdict::Broken(format!("{exit:?}")),
    };
    Ok(serving(&sandbox, verdict).await)
}

/// The verdict, unless the sandbox has stopped to serve.
async fn serving(sandbox: &Sandbox, verdict: Verdict) -> Verdict {
    match still_serves(sandbox).await {
        Ok(()) => verdict,
        Err(why) => Verdict::Broken(why),
    }
}

async fn never_reads(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let spec = RunSpec {
        stdin: Input::Bytes(vec![b'x'; 10 << 20].into()),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        ..RunSpec::new(["sleep", "0.2"])
    };
    let exit = sandbox.run(spec).await?.wait().await?;
    let verdict = if exit.is_success() {
        Verdict::Held("10 MB that nobody read kept nothing up".to_owned())
    } else {
        Verdict::Broken(format!("{exit:?}"))
    };
    Ok(serving(&sandbox, verdict).await)
}

/// After the program nothing of it may run.
async fn leaves(bench: &Bench, code: &str) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    python(&sandbox, code, LONG).await?;
    let count = "import os\nown = os.getuid()\nprint(sum(os.stat('/proc/' + p).st_uid == own for p in os.listdir('/proc') if p.isdigit() and os.path.exists('/proc/' + p) and 'init' not in open('/proc/%s/comm' % p).read()))";
    let left = python(&sandbox, count, LONG).await?.stdout;
    let verdict = if left.trim() == "1" {
        Verdict::Held("it died with its program".to_owned())
    } else {
        Verdict::Broken(format!("{} processes besides the one that counts", left.trim()))
    };
    Ok(serving(&sandbox, verdict).await)
}

async fn spins_wide(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let code = "import os, time\nfor _ in range(7):\n  if os.fork() == 0: break\nend = time.time() + 3\nwhile time.time() < end: pass";
    let exit = python(&sandbox, code, LONG).await?.exit;
    let share = exit.cpu.as_secs_f64() / exit.wall.as_secs_f64().max(0.001);
    let allowed = bench.cpus();
    let verdict = if share <= allowed * 1.25 {
        Verdict::Held(format!("it had {share:.2} processors of {allowed:.2}"))
    } else {
        Verdict::Broken(format!("it had {share:.2} processors, of {allowed:.2}"))
    };
    Ok(serving(&sandbox, verdict).await)
}

/// A tree deeper than paths are long must neither stop packing nor the end of the sandbox.
async fn nests(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    shell(
        &sandbox,
        "i=0; while [ $i -lt 3000 ]; do mkdir d && cd d || exit; i=$((i+1)); done; : > deepest",
        LONG,
    )
    .await?;
    let fetched = sandbox.get_files(GetFiles::matching(["**"])).await;
    let verdict = match fetched {
        Ok(files) => Verdict::Held(format!("{} files packed of it", files.report.files.len())),
        Err(error) => Verdict::Held(format!("refused: {error}")),
    };
    Ok(serving(&sandbox, verdict).await)
}
