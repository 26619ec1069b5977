//! What every driver's sandboxes must do, whatever they are made of.
//!
//! Each function is one promise, over any [`Subject`]; `conformance!` makes a test of each for one driver. They need
//! nothing in the image but a shell, the usual small programs and python3.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assert_matches::assert_matches;
use bytes::{Bytes, BytesMut};
use hothouse_protocol::{Decoder, Frame, FromInit, Greeting, Kind, ToInit, Token, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;
use worker::driver::{Profile, SandboxDriver, Spec};
use worker::sandbox::{
    Error, Exit, FailureCode, GetFiles, Input, Lost, Oom, Output, PutFiles, RunSpec, Running, Sandbox, Settings,
    TerminalSize, TextFile,
};

mod trees;

pub(crate) use trees::*;

/// Makes a test of each promise for the driver that `$subject`, an async function, prepares.
macro_rules! conformance {
    ($subject:path) => {
        conformance!($subject;
            a_program_s_output_and_code_come_back, a_signal_is_told, what_cannot_be_started_is_refused_with_a_reason,
            environment_and_folder_are_those_of_the_request, input_streams_while_output_does,
            input_larger_than_the_window_arrives_whole, a_program_without_input_reads_the_end,
            bytes_pass_unchanged, stdout_and_stderr_come_apart_and_in_order, long_output_keeps_head_and_tail,
            a_flood_is_killed_and_bounded, a_slow_reader_holds_up_nobody_else, time_is_over_after_sigterm_and_sigkill,
            a_polite_program_ends_at_sigterm, a_daemon_dies_with_its_run, runs_side_by_side_are_killed_apart,
            a_dropped_run_is_killed, a_kill_that_comes_too_late_is_harmless, everything_can_be_killed_at_once,
            a_program_rests_alone_and_goes_on, a_signal_reaches_the_process_group,
            a_terminal_is_one, a_fork_bomb_is_bounded_and_killed,
            without_processes_left_a_run_is_refused, memory_is_limited_and_its_end_told,
            a_full_disk_is_told, time_and_memory_are_accounted, files_go_in_and_come_out,
            files_come_with_the_program,
            only_what_matches_comes_out, hostile_archives_are_refused,
            archives_over_their_caps_are_refused, a_tree_comes_back_as_it_was, what_is_too_deep_or_too_long_is_told,
            a_hundred_thousand_small_files_come_back, a_lease_that_passes_ends_everything, a_roused_sandbox_is_heard,
            a_dropped_sandbox_leaves_nothing, a_destroyed_sandbox_is_a_lost_one, init_cannot_be_reached_by_a_job,
            a_forged_frame_ends_the_sandbox, rubbish_ends_the_sandbox,
            a_job_has_no_privileges, there_is_no_network, nothing_of_the_host_is_visible);
    };
    ($subject:path; $($promise:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $promise() {
            let subject = $subject().await;
            Box::pin(crate::conformance::$promise(&subject)).await;
            subject.has_nothing_left().await;
        })*
    };
}
pub(crate) use conformance;

const LONG: Duration = Duration::from_secs(30);
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// A driver, and what is needed to start sandboxes with it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) driver: Arc<dyn SandboxDriver>,
    pub(crate) image: String,
    pub(crate) profile: Profile,
    pub(crate) worker_id: Uuid,
    /// What must live as long as the driver.
    #[expect(dead_code, reason = "held for its end")]
    pub(crate) guard: Box<dyn Debug + Send + Sync>,
}

/// A small sandbox: limits that a test reaches quickly.
pub(crate) fn small() -> Profile {
    Profile {
        memory_bytes: 96 << 20,
        pids: 40,
        workspace_bytes: 16 << 20,
        tmp_bytes: 8 << 20,
        inodes: 2_000,
        ..Profile::default()
    }
}

impl Subject {
    pub(crate) async fn sandbox(&self) -> Sandbox {
        self.sandbox_of(self.spec()).await
    }

    async fn sandbox_of(&self, spec: Spec) -> Sandbox {
        let pipe = self.driver.start(&spec).await.unwrap();
        Sandbox::connect(
            pipe,
            &Settings {
                must_have_own_uid: true,
                ..Settings::default()
            },
        )
        .await
        .unwrap()
    }

    fn spec(&self) -> Spec {
        Spec {
            id: Uuid::now_v7(),
            worker_id: self.worker_id,
            environment: "conformance".to_owned(),
            image: self.image.clone(),
            image_id: None,
            profile: self.profile.clone(),
        }
    }

    async fn ids(&self) -> Vec<Uuid> {
        let found = self.driver.list().await.unwrap();
        found
            .into_iter()
            .filter(|found| found.worker_id == self.worker_id)
            .map(|found| found.id)
            .collect()
    }

    pub(crate) async fn has_nothing_left(&self) {
        eventually("every sandbox to be gone", async || self.ids().await.is_empty()).await;
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let until = Instant::now() + LONG;
    while !holds().await {
        assert!(Instant::now() < until, "waited {LONG:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[derive(Debug)]
struct Done {
    exit: Exit,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    cuts: u32,
}

impl Done {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

fn spec(argv: &[&str]) -> RunSpec {
    let path = ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned());
    RunSpec {
        timeout: Some(LONG),
        env: vec![path],
        ..RunSpec::new(argv.iter().copied())
    }
}

fn sh(script: &str) -> RunSpec {
    spec(&["sh", "-c", script])
}

fn python(script: &str) -> RunSpec {
    spec(&["python3", "-c", script])
}

async fn run(sandbox: &Sandbox, spec: RunSpec) -> Done {
    finish(sandbox.run(spec).await.unwrap()).await
}

async fn finish(mut running: Running) -> Done {
    let (mut stdout, mut stderr, mut cuts) = (Vec::new(), Vec::new(), 0);
    while let Some(output) = running.next().await {
        match output {
            Output::Stdout(data) => stdout.extend_from_slice(&data),
            Output::Stderr(data) => stderr.extend_from_slice(&data),
            Output::Cut { .. } => cuts += 1,
        }
    }
    Done {
        exit: running.wait().await.unwrap(),
        stdout,
        stderr,
        cuts,
    }
}

/// Reads until the output so far contains `text`.
async fn read_until(running: &mut Running, text: &str) -> String {
    let mut seen = Vec::new();
    while let Some(output) = running.next().await {
        if let Output::Stdout(data) = output {
            seen.extend_from_slice(&data);
        }
        let so_far = String::from_utf8_lossy(&seen);
        if so_far.contains(text) {
            return so_far.into_owned();
        }
    }
    panic!("it ended after {:?} without {text:?}", String::from_utf8_lossy(&seen));
}

pub(crate) async fn a_program_s_output_and_code_come_back(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let done = run(&sandbox, sh("echo hello; echo oops >&2; exit 7")).await;
    assert_eq!(
        (done.text().as_str(), done.stderr.as_slice()),
        ("hello", &b"oops\n"[..])
    );
    assert_eq!((done.exit.code, done.exit.signal), (Some(7), None));
    assert_eq!((done.exit.stdout.bytes, done.exit.stderr.bytes), (6, 5));
    assert_eq!(run(&sandbox, spec(&["true"])).await.exit.code, Some(0));
}

pub(crate) async fn a_signal_is_told(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let done = run(&sandbox, sh("kill -SEGV $$")).await;
    assert_eq!((done.exit.code, done.exit.signal), (None, Some(11)));
    let done = run(&sandbox, sh("kill -KILL $$")).await;
    assert_eq!(
        (done.exit.signal, done.exit.oom, done.exit.killed),
        (Some(SIGKILL), Oom::No, false)
    );
}

pub(crate) async fn what_cannot_be_started_is_refused_with_a_reason(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let code = async |spec: RunSpec| match sandbox.run(spec).await {
        Err(Error::Refused(failure)) => failure.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(spec(&["no-such-program"])).await, FailureCode::NotFound);
    assert_eq!(code(spec(&["/etc/passwd"])).await, FailureCode::Denied);
    assert_eq!(code(spec(&[])).await, FailureCode::Invalid);
    assert_eq!(code(spec(&["echo", "a\0b"])).await, FailureCode::Invalid);
    assert_eq!(
        code(RunSpec {
            cwd: "/nowhere".to_owned(),
            ..spec(&["true"])
        })
        .await,
        FailureCode::NotFound
    );
    assert_eq!(
        code(RunSpec {
            cwd: "/root".to_owned(),
            ..sh("ls")
        })
        .await,
        code_of_missing_root(&sandbox).await
    );
    let large = "x".repeat(300 << 10);
    assert_matches!(sandbox.run(spec(&["echo", &large])).await, Err(Error::TooLarge { .. }));
    assert_eq!(
        code(spec(&["echo", &"x".repeat(200 << 10)])).await,
        FailureCode::Invalid
    );
    assert!(run(&sandbox, spec(&["true"])).await.exit.is_success());
}

/// `/root` is closed in an image and not there under bubblewrap.
async fn code_of_missing_root(sandbox: &Sandbox) -> FailureCode {
    let exists = run(sandbox, sh("test -e /root")).await.exit.is_success();
    if exists {
        FailureCode::Denied
    } else {
        FailureCode::NotFound
    }
}

pub(crate) async fn environment_and_folder_are_those_of_the_request(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let mut spec = spec(&["/usr/bin/env"]);
    spec.env = vec![
        ("A".to_owned(), "1 = \u{1f331}".to_owned()),
        ("B".to_owned(), String::new()),
    ];
    assert_eq!(run(&sandbox, spec).await.text(), "A=1 = \u{1f331}\nB=");
    assert_eq!(run(&sandbox, sh("pwd; umask")).await.text(), "/workspace\n0022");
    assert_eq!(
        run(
            &sandbox,
            RunSpec {
                cwd: "/usr".to_owned(),
                ..sh("pwd")
            }
        )
        .await
        .text(),
        "/usr"
    );
}

pub(crate) async fn input_streams_while_output_does(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let mut running = sandbox
        .run(RunSpec {
            stdin: Input::Stream,
            ..spec(&["cat"])
        })
        .await
        .unwrap();
    for line in ["one\n", "two\n", "three\n"] {
        running.write_stdin(line).await.unwrap();
        read_until(&mut running, line).await;
    }
    running.close_stdin().await.unwrap();
    assert_eq!(finish(running).await.exit.code, Some(0));
}

pub(crate) async fn input_larger_than_the_window_arrives_whole(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let input = Bytes::from((0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>());
    let spec = RunSpec {
        stdin: Input::Bytes(input.clone()),
        keep_bytes: None,
        ..spec(&["cat"])
    };
    let done = run(&sandbox, spec).await;
    assert!(done.stdout == input, "{} bytes came back", done.stdout.len());
    // A program that does not read its input ends all the same.
    let spec = RunSpec {
        stdin: Input::Bytes(input),
        ..sh("exec <&-; exit 3")
    };
    assert_eq!(run(&sandbox, spec).await.exit.code, Some(3));
}

pub(crate) async fn a_program_without_input_reads_the_end(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let done = run(&sandbox, spec(&["wc", "-c"])).await;
    assert_eq!(done.text(), "0");
}

pub(crate) async fn bytes_pass_unchanged(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let done = run(
        &sandbox,
        python("import sys; sys.stdout.buffer.write(bytes(range(256)) * 3)"),
    )
    .await;
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(done.stdout, all.repeat(3));
}

pub(crate) async fn stdout_and_stderr_come_apart_and_in_order(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let script = "for i in $(seq 500); do echo out $i; echo err $i >&2; done";
    let done = run(&sandbox, sh(script)).await;
    let expected = |name: &str| (1..=500).map(|n| format!("{name} {n}\n")).collect::<Vec<_>>().concat();
    assert_eq!(String::from_utf8_lossy(&done.stdout), expected("out"));
    assert_eq!(String::from_utf8_lossy(&done.stderr), expected("err"));
}

pub(crate) async fn long_output_keeps_head_and_tail(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let script = "import sys\nfor n in range(500_000): sys.stdout.write('%09d\\n' % n)";
    let done = run(
        &sandbox,
        RunSpec {
            keep_bytes: Some(100_000),
            ..python(script)
        },
    )
    .await;
    assert_eq!((done.exit.code, done.cuts), (Some(0), 1));
    assert_eq!(
        (done.exit.stdout.bytes, done.exit.stdout.dropped),
        (5_000_000, 4_900_000)
    );
    let lines: Vec<_> = done.stdout.chunks(10).collect();
    assert_eq!((lines[0], lines[4_999]), (&b"000000000\n"[..], &b"000004999\n"[..]));
    assert_eq!((lines[5_000], lines[9_999]), (&b"000495000\n"[..], &b"000499999\n"[..]));
    assert_eq!(lines.len(), 10_000);
}

pub(crate) async fn a_flood_is_killed_and_bounded(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    // Ten gigabytes, were nobody to stop it.
    let done = run(&sandbox, sh("head -c 10000000000 /dev/zero")).await;
    assert_eq!(
        (done.exit.output_limit, done.exit.signal, done.cuts),
        (true, Some(SIGKILL), 1)
    );
    assert!(
        (64 << 20..66 << 20).contains(&done.exit.stdout.bytes),
        "{:?}",
        done.exit.stdout
    );
    assert_eq!(done.stdout.len(), 1 << 20);
    sandbox.ping(LONG).await.unwrap();
}

pub(crate) async fn a_slow_reader_holds_up_nobody_else(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let flood = sandbox
        .run(RunSpec {
            keep_bytes: None,
            kill_bytes: None,
            ..spec(&["yes"])
        })
        .await
        .unwrap();
    for _ in 0..20 {
        assert_eq!(run(&sandbox, sh("echo through")).await.text(), "through");
    }
    sandbox.ping(LONG).await.unwrap();
    flood.kill().await.unwrap();
    assert!(finish(flood).await.exit.killed);
}

pub(crate) async fn time_is_over_after_sigterm_and_sigkill(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let stubborn = sh("trap '' TERM; echo ready; while :; do sleep 1; done");
    let (timeout, grace) = (Duration::from_secs(1), Duration::from_millis(200));
    let done = run(
        &sandbox,
        RunSpec {
            timeout: Some(timeout),
            grace,
            ..stubborn
        },
    )
    .await;
    assert_eq!(
        (done.text().as_str(), done.exit.timed_out, done.exit.signal),
        ("ready", true, Some(SIGKILL))
    );
    assert!(
        done.exit.wall >= timeout + grace && done.exit.wall < LONG,
        "{:?}",
        done.exit.wall
    );
}

pub(crate) async fn a_polite_program_ends_at_sigterm(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let polite = sh("trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done");
    let spec = RunSpec {
        timeout: Some(Duration::from_secs(1)),
        grace: LONG,
        ..polite
    };
    let done = run(&sandbox, spec).await;
    assert_eq!(
        (done.text().as_str(), done.exit.timed_out, done.exit.code),
        ("bye", true, Some(5))
    );
    let spec = RunSpec {
        timeout: Some(Duration::from_millis(200)),
        grace: LONG,
        ..spec_sleep()
    };
    assert_eq!(run(&sandbox, spec).await.exit.signal, Some(SIGTERM));
}

fn spec_sleep() -> RunSpec {
    spec(&["sleep", "1000"])
}

pub(crate) async fn a_daemon_dies_with_its_run(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let daemon = "\
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid() if os.getpid() != os.getsid(0) else None
        time.sleep(1000)
    os._exit(0)
time.sleep(0.2)
print('left')
";
    // Its descriptors stay open in the daemon, and must not hold up the end.
    let done = run(&sandbox, python(daemon)).await;
    assert_eq!((done.text().as_str(), done.exit.code), ("left", Some(0)));
    assert!(done.exit.wall < Duration::from_secs(20), "{:?}", done.exit.wall);
    assert_eq!(others(&sandbox).await, "");
}

/// The processes of the job's user beside the one that looks.
async fn others(sandbox: &Sandbox) -> String {
    let script = "\
import os
own = os.getuid()
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        if os.stat('/proc/' + pid).st_uid == own and int(pid) != os.getpid():
            print(pid, open('/proc/%s/cmdline' % pid).read().replace('\\0', ' '))
    except OSError:
        pass
";
    run(sandbox, python(script)).await.text()
}

pub(crate) async fn runs_side_by_side_are_killed_apart(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let looping = || RunSpec {
        stdin: Input::Stream,
        ..sh("setsid sleep 1000 & echo up; read line; echo $line")
    };
    let mut first = sandbox.run(looping()).await.unwrap();
    let mut second = sandbox.run(looping()).await.unwrap();
    read_until(&mut first, "up").await;
    read_until(&mut second, "up").await;
    first.kill().await.unwrap();
    let done = finish(first).await;
    assert_eq!((done.exit.killed, done.exit.signal), (true, Some(SIGKILL)));
    second.write_stdin("alive\n").await.unwrap();
    assert_eq!(finish(second).await.text(), "alive");
    assert_eq!(others(&sandbox).await, "");
}

pub(crate) async fn a_dropped_run_is_killed(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    // Not even a run whose output nobody takes is left.
    let run = sandbox
        .run(RunSpec {
            keep_bytes: None,
            kill_bytes: None,
            ..spec(&["yes"])
        })
        .await
        .unwrap();
    drop(run);
    drop(sandbox.run(spec_sleep()).await.unwrap());
    eventually("the dropped runs to be gone", async || {
        others(&sandbox).await.is_empty()
    })
    .await;
}

pub(crate) async fn a_kill_that_comes_too_late_is_harmless(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    for _ in 0..100 {
        // The program ends by itself at about the moment when the command to end it arrives.
        let running = sandbox.run(spec(&["true"])).await.unwrap();
        running.kill().await.unwrap();
        let exit = finish(running).await.exit;
        assert!(
            exit.is_success() || (exit.killed && exit.signal == Some(SIGKILL)),
            "{exit:?}"
        );
    }
    sandbox.ping(LONG).await.unwrap();
}

pub(crate) async fn everything_can_be_killed_at_once(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let first = sandbox.run(spec_sleep()).await.unwrap();
    let second = sandbox
        .run(sh("setsid sleep 1000 & setsid sleep 1000 & wait"))
        .await
        .unwrap();
    // The answer comes when the exits have come, so nobody need read them meanwhile.
    sandbox.kill_all().await.unwrap();
    assert!(finish(first).await.exit.killed && finish(second).await.exit.killed);
    assert_eq!(others(&sandbox).await, "");
}

pub(crate) async fn a_program_rests_alone_and_goes_on(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    assert!(sandbox.about().can_rest);
    let script = "setsid sleep 1000 & (setsid sleep 1000 &); n=0; echo up; \
                  while read -r line; do n=$((n+1)); echo \"$line $n\"; done; echo end";
    let spec = RunSpec {
        stdin: Input::Stream,
        timeout: None,
        ..sh(script)
    };
    let mut resting = sandbox.run(spec).await.unwrap();
    let other = sandbox.run(spec_sleep()).await.unwrap();
    read_until(&mut resting, "up").await;
    let rested = resting.rest(LONG).await.unwrap();
    assert!(rested.is_alive && rested.others >= 2, "{rested:?}");
    assert!(finish(other).await.exit.killed);
    // It is there, and does nothing: what it is sent is read when it goes on.
    let left = others(&sandbox).await;
    assert!(left.contains("while read") && !left.contains("sleep 1000 \n"), "{left}");
    resting.write_stdin("first\n").await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(200), resting.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    resting.wake().await.unwrap();
    read_until(&mut resting, "first 1").await;
    // Again, with nothing beside it, and then to its end.
    assert_eq!(resting.rest(LONG).await.unwrap().others, 0);
    resting.wake().await.unwrap();
    resting.close_stdin().await.unwrap();
    let exit = resting.wait().await.unwrap();
    assert!(exit.is_success() && !exit.killed, "{exit:?}");
    // One that has ended says so, and one that rests can be killed.
    let mut spec = sh("echo up; exec sleep 1000");
    spec.timeout = None;
    let mut killed = sandbox.run(spec).await.unwrap();
    read_until(&mut killed, "up").await;
    assert!(killed.rest(LONG).await.unwrap().is_alive);
    sandbox.kill_all().await.unwrap();
    assert!(!killed.rest(LONG).await.unwrap().is_alive);
    assert!(finish(killed).await.exit.killed);
    assert_eq!(others(&sandbox).await, "");
}

pub(crate) async fn a_signal_reaches_the_process_group(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let script = "\
import time
try:
    print('up', flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print('stopped')
";
    let mut running = sandbox.run(python(script)).await.unwrap();
    read_until(&mut running, "up").await;
    running.signal(2).await.unwrap();
    let done = finish(running).await;
    assert_eq!(
        (done.text().as_str(), done.exit.code, done.exit.killed),
        ("stopped", Some(0), false)
    );
}

pub(crate) async fn a_terminal_is_one(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let size = TerminalSize { rows: 24, cols: 80 };
    let script = sh("test -t 0 && test -t 1 && stty size; read line; stty size; echo got $line; cat; echo end");
    let mut running = sandbox
        .run(RunSpec {
            terminal: Some(size),
            stdin: Input::Stream,
            ..script
        })
        .await
        .unwrap();
    read_until(&mut running, "24 80").await;
    running.resize(TerminalSize { rows: 50, cols: 132 }).await.unwrap();
    running.write_stdin("x\n").await.unwrap();
    let seen = read_until(&mut running, "got x").await;
    assert!(seen.contains("50 132"), "{seen:?}");
    running.close_stdin().await.unwrap();
    let done = finish(running).await;
    assert_eq!(
        (done.exit.code, done.text().ends_with("end")),
        (Some(0), true),
        "{done:?}"
    );
}

pub(crate) async fn a_fork_bomb_is_bounded_and_killed(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let bomb = "\
import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(0.01)
";
    let spec = RunSpec {
        timeout: Some(Duration::from_millis(800)),
        grace: Duration::from_millis(100),
        ..python(bomb)
    };
    let done = run(&sandbox, spec).await;
    assert!(done.exit.timed_out, "{:?}", done.exit);
    assert_eq!(others(&sandbox).await, "");
    let count = "import os, sys, time\nn = 0\nwhile True:\n  try: pid = os.fork()\n  except OSError: print(n, flush=True); os._exit(0)\n  \
                 if pid == 0: time.sleep(1000)\n  n += 1\n  if n > 1000: print('unbounded', flush=True); os._exit(1)";
    let bounded: u32 = run(&sandbox, python(count)).await.text().parse().unwrap();
    assert!(bounded <= subject.profile.pids, "{bounded} processes");
}

pub(crate) async fn without_processes_left_a_run_is_refused(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let greedy = "\
import os, time
pids = []
def sleep():
    while True: time.sleep(1000)
while True:
    try: pid = os.fork()
    except OSError: break
    if pid == 0: sleep()
    pids.append(pid)
print('full', flush=True)
input()
os.kill(pids[-1], 9)
os.waitpid(pids[-1], 0)
print('one', flush=True)
input()
";
    let spec = RunSpec {
        stdin: Input::Stream,
        ..python(greedy)
    };
    let mut others = sandbox.run(spec).await.unwrap();
    // With none left init forks no supervisor; with one left the supervisor forks no program.
    for said in ["full", "one"] {
        read_until(&mut others, said).await;
        let refused = sandbox.run(self::spec(&["true"])).await.unwrap_err();
        assert_matches!(refused, Error::Refused(failure) if failure.code == FailureCode::Exhausted);
        others.write_stdin("\n").await.unwrap();
    }
    assert_eq!(finish(others).await.exit.code, Some(0));
    assert_eq!(run(&sandbox, self::spec(&["true"])).await.exit.code, Some(0));
}

pub(crate) async fn memory_is_limited_and_its_end_told(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let bomb = "b = []\nwhile True: b.append(bytearray(b'x') * (1 << 20))";
    let done = run(&sandbox, python(bomb)).await;
    assert_eq!(
        (done.exit.signal, done.exit.oom),
        (Some(SIGKILL), Oom::Yes),
        "{:?}",
        done.exit
    );
    // The kernel takes a child, and the program that started it goes on: that is told too.
    let child = format!("import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', {bomb:?}]).returncode)");
    let done = run(&sandbox, python(&child)).await;
    assert_eq!(
        (done.text().as_str(), done.exit.code, done.exit.oom),
        ("-9", Some(0), Oom::Yes)
    );
    let done = run(&sandbox, spec(&["true"])).await;
    assert_eq!((done.exit.code, done.exit.oom), (Some(0), Oom::No));
}

pub(crate) async fn a_full_disk_is_told(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    for folder in ["/workspace", "/tmp"] {
        let script = format!("head -c 1000000000 /dev/zero > {folder}/full");
        let done = run(&sandbox, sh(&script)).await;
        assert_eq!(
            (done.exit.is_success(), done.exit.disk_full, done.exit.oom),
            (false, true, Oom::No),
            "{folder}"
        );
        assert_eq!(done.exit.full_mounts[0].path, folder);
        assert!(run(&sandbox, sh(&format!("rm {folder}/full"))).await.exit.is_success());
    }
    assert!(!run(&sandbox, spec(&["false"])).await.exit.disk_full);
}

pub(crate) async fn time_and_memory_are_accounted(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    // Two children of a child burn the time; nobody waits for one of them.
    let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done";
    let done = run(&sandbox, sh(&format!("({burn}) & ({burn}); wait"))).await;
    assert!(done.exit.cpu >= Duration::from_millis(40), "{:?}", done.exit);
    assert!(done.exit.wall >= Duration::from_millis(20), "{:?}", done.exit);
    let done = run(
        &sandbox,
        python("b = bytearray(50 << 20); b[::4096] = b'x' * len(b[::4096])"),
    )
    .await;
    assert!(
        (50 << 20..96 << 20).contains(&done.exit.memory_peak_bytes),
        "{:?}",
        done.exit
    );
    let idle = run(&sandbox, spec(&["sleep", "0.3"])).await.exit;
    assert!(
        idle.cpu < Duration::from_millis(100) && idle.wall >= Duration::from_millis(300),
        "{idle:?}"
    );
}

fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn add(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6755);
    header.set_size(content.len() as u64);
    // Straight into the field, because the library refuses what these tests are about.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

pub(crate) async fn files_go_in_and_come_out(subject: &Subject) {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let sandbox = subject.sandbox().await;
    let input = archive(|tar| {
        add(tar, Directory, "data/", "", b"");
        add(tar, Regular, "data/a.txt", "", b"hello\n");
        add(tar, Regular, "deep/er/b.bin", "", &[0, 159, 146, 150]);
        add(tar, Symlink, "data/link", "../deep/er/b.bin", b"");
        add(tar, Link, "data/hard", "data/a.txt", b"");
    });
    let report = sandbox.put_files(input.clone(), PutFiles::default()).await.unwrap();
    assert_eq!((report.entries, report.bytes), (5, 10));
    let script = "cat data/a.txt data/hard; od -An -tx1 data/link; stat -c '%a %h' data/a.txt; test -O data/a.txt";
    let done = run(&sandbox, sh(script)).await;
    // Neither setuid nor setgid came along.
    assert_eq!(
        (done.text().as_str(), done.exit.code),
        ("hello\nhello\n 00 9f 92 96\n755 2", Some(0))
    );

    let again = sandbox
        .put_files(
            input,
            PutFiles {
                dest: "copy".to_owned(),
                ..PutFiles::default()
            },
        )
        .await;
    assert_eq!(again.unwrap().entries, 5);
    let tree = GetFiles {
        root: "copy".to_owned(),
        whole_tree: true,
        ..GetFiles::matching(["**"])
    };
    let files = sandbox.get_files(tree).await.unwrap();
    let mut seen = Vec::new();
    for entry in tar::Archive::new(&files.archive[..]).entries().unwrap() {
        let entry = entry.unwrap();
        seen.push(format!("{} {}", entry.path().unwrap().display(), entry.size()));
    }
    assert_eq!(
        seen,
        [
            "data 0",
            "data/a.txt 6",
            "data/hard 0",
            "data/link 0",
            "deep 0",
            "deep/er 0",
            "deep/er/b.bin 4"
        ]
    );
    assert_eq!((files.report.entries, files.report.files.len()), (7, 0));
}

pub(crate) async fn files_come_with_the_program(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let text = |path: &str, text: &str| TextFile {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    let files = vec![
        text("bin/go", "#!/bin/sh\ncat main.txt; id -u; ls -l main.txt\n"),
        text("main.txt", "hello\n"),
    ];
    let spec = RunSpec {
        files,
        ..spec(&["./bin/go"])
    };
    let done = run(&sandbox, spec).await;
    let said = done.text();
    assert!(done.exit.is_success() && said.starts_with("hello\n"), "{said}");
    let uid = said.lines().nth(1).unwrap();
    assert_ne!(uid, "0");

    // A job may have put a link there before: it is replaced, not followed.
    assert!(
        run(
            &sandbox,
            sh("ln -sf /tmp/target link; ln -s /tmp folder; echo kept > /tmp/target")
        )
        .await
        .exit
        .is_success()
    );
    let replaced = RunSpec {
        files: vec![text("link", "new")],
        ..sh("cat link /tmp/target")
    };
    assert_eq!(run(&sandbox, replaced).await.text(), "newkept");
    for path in ["../x", "/tmp/x", "folder/x", ""] {
        let refused = RunSpec {
            files: vec![text(path, "")],
            ..sh("true")
        };
        let error = sandbox.run(refused).await.unwrap_err();
        assert_matches!(error, Error::Refused(failure) if failure.code == FailureCode::Invalid, "{path:?}");
    }
    assert!(
        !run(&sandbox, sh("head -c 1000000000 /dev/zero > full"))
            .await
            .exit
            .is_success()
    );
    let over = || RunSpec {
        files: vec![text("more", &"x".repeat(100 << 10))],
        ..sh("wc -c < more")
    };
    let error = sandbox.run(over()).await.unwrap_err();
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(run(&sandbox, sh("rm full")).await.exit.is_success());
    assert_eq!(run(&sandbox, over()).await.text().trim(), "102400");
}

pub(crate) async fn only_what_matches_comes_out(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let script = "mkdir -p out/deep; echo 1 >out/a.png; echo 2 >out/deep/b.png; echo 3 >out/c.txt; ln -s /etc/passwd \
                  out/p.png; ln -s /etc out/etc; mkfifo out/f.png; ln -s out alias; head -c 100000 /dev/zero > out/z.big";
    assert!(run(&sandbox, sh(script)).await.exit.is_success());
    let get = async |globs: &[&str]| {
        let files = sandbox
            .get_files(GetFiles::matching(globs.iter().copied()))
            .await
            .unwrap();
        files.report.files.into_iter().map(|file| file.path).collect::<Vec<_>>()
    };
    assert_eq!(get(&["out/*.png"]).await, ["out/a.png"]);
    assert_eq!(get(&["./out/*.png", "**/b.png"]).await, ["out/a.png", "out/deep/b.png"]);
    assert_eq!(
        get(&["alias/*", "out/etc/*", "/etc/passwd", "../*", "nothing"]).await,
        [""; 0]
    );
    let capped = GetFiles {
        bytes_max: 1_000,
        ..GetFiles::matching(["out/**"])
    };
    let files = sandbox.get_files(capped).await.unwrap();
    assert!(files.report.incomplete && files.report.files.iter().all(|file| file.path != "out/z.big"));
    let bad = sandbox.get_files(GetFiles::matching(["a[z-a]"])).await;
    assert_matches!(bad, Err(Error::Files { .. }));
    let outside = GetFiles {
        root: "../etc".to_owned(),
        ..GetFiles::matching(["*"])
    };
    assert_matches!(sandbox.get_files(outside).await, Err(Error::Files { .. }));
}

pub(crate) async fn hostile_archives_are_refused(subject: &Subject) {
    use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let sandbox = subject.sandbox().await;
    let cases: [(&str, Vec<u8>); 12] = [
        (
            "climbing",
            archive(|tar| add(tar, Regular, "a/../../tmp/evil", "", b"x")),
        ),
        ("absolute", archive(|tar| add(tar, Regular, "/tmp/evil", "", b"x"))),
        ("a link outside", archive(|tar| add(tar, Symlink, "l", "/tmp", b""))),
        (
            "a climbing link",
            archive(|tar| add(tar, Symlink, "a/l", "../../tmp", b"")),
        ),
        (
            "through a link inside",
            archive(|tar| {
                add(tar, Directory, "d", "", b"");
                add(tar, Symlink, "l", "d", b"");
                add(tar, Regular, "l/evil", "", b"x");
            }),
        ),
        (
            "a hard link outside",
            archive(|tar| add(tar, Link, "l", "/etc/passwd", b"")),
        ),
        (
            "a climbing hard link",
            archive(|tar| add(tar, Link, "l", "../etc/passwd", b"")),
        ),
        ("a fifo", archive(|tar| add(tar, Fifo, "f", "", b""))),
        ("a device", archive(|tar| add(tar, Char, "c", "", b""))),
        ("a disk", archive(|tar| add(tar, Block, "b", "", b""))),
        ("rubbish", vec![7; 2_000]),
        (
            "cut short",
            archive(|tar| add(tar, Regular, "a", "", &[1; 5_000]))[..3_000].to_vec(),
        ),
    ];
    for (name, input) in cases {
        let put = PutFiles {
            dest: "case".to_owned(),
            ..PutFiles::default()
        };
        assert_matches!(sandbox.put_files(input, put).await, Err(Error::Files { .. }), "{name}");
    }
    // A link that is there already is not followed either.
    assert!(
        run(&sandbox, sh("ln -s /tmp trap; ln -s /tmp/evil file"))
            .await
            .exit
            .is_success()
    );
    let through = archive(|tar| add(tar, Regular, "trap/evil", "", b"x"));
    assert_matches!(
        sandbox.put_files(through, PutFiles::default()).await,
        Err(Error::Files { .. })
    );
    let over = archive(|tar| add(tar, Regular, "file", "", b"x"));
    sandbox.put_files(over, PutFiles::default()).await.unwrap();
    assert_eq!(
        run(&sandbox, sh("ls /tmp; stat -c %F file")).await.text(),
        "regular file"
    );
}

pub(crate) async fn archives_over_their_caps_are_refused(subject: &Subject) {
    use tar::EntryType::Regular;
    let sandbox = subject.sandbox().await;
    let many = archive(|tar| (0..50).for_each(|n| add(tar, Regular, &format!("n{n}"), "", b"xx")));
    for put in [
        PutFiles {
            entries_max: 49,
            ..PutFiles::default()
        },
        PutFiles {
            bytes_max: 99,
            ..PutFiles::default()
        },
    ] {
        assert_matches!(sandbox.put_files(many.clone(), put).await, Err(Error::Files { .. }));
    }
    let large = archive(|tar| add(tar, Regular, "large", "", &vec![1; 20 << 20]));
    assert_matches!(sandbox.put_files(large, PutFiles::default()).await, Err(Error::Files { reason }) if reason.contains("space"));
}

pub(crate) async fn a_lease_that_passes_ends_everything(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let running = sandbox.run(spec_sleep()).await.unwrap();
    sandbox.extend_lease(LONG).await.unwrap();
    sandbox.ping(LONG).await.unwrap();
    assert!(sandbox.is_alive());
    sandbox.extend_lease(Duration::from_millis(100)).await.unwrap();
    assert_matches!(
        tokio::time::timeout(LONG, running.wait()).await,
        Ok(Err(Error::Lost(_)))
    );
    assert!(!sandbox.is_alive());
    assert_matches!(
        sandbox.run(spec(&["true"])).await,
        Err(Error::Lost(Lost::Closed | Lost::Failed(_)))
    );
    subject.has_nothing_left().await;
}

pub(crate) async fn a_roused_sandbox_is_heard(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let asked = Instant::now();
    sandbox.rouse();
    eventually("an answer", async || sandbox.silent_for() < asked.elapsed()).await;
    // More than can wait is asked for by nobody, and what is asked for goes on.
    (0..1_000).for_each(|_| sandbox.rouse());
    assert_eq!(run(&sandbox, spec(&["true"])).await.exit.code, Some(0));
}

pub(crate) async fn a_dropped_sandbox_leaves_nothing(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let running = sandbox
        .run(sh("setsid sleep 1000 & trap '' TERM HUP; wait"))
        .await
        .unwrap();
    assert_eq!(subject.ids().await.len(), 1);
    drop(sandbox);
    assert_matches!(
        tokio::time::timeout(LONG, running.wait()).await,
        Ok(Err(Error::Lost(_)))
    );
    subject.has_nothing_left().await;
}

pub(crate) async fn a_destroyed_sandbox_is_a_lost_one(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let running = sandbox.run(spec_sleep()).await.unwrap();
    let [id] = subject.ids().await[..] else {
        panic!("one sandbox")
    };
    subject.driver.destroy(id).await.unwrap();
    assert_matches!(
        tokio::time::timeout(LONG, running.wait()).await,
        Ok(Err(Error::Lost(_)))
    );
    subject.has_nothing_left().await;
    // Once more is no error.
    subject.driver.destroy(id).await.unwrap();
}

pub(crate) async fn init_cannot_be_reached_by_a_job(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    assert!(
        sandbox.about().has_own_uid && sandbox.about().has_read_only_root,
        "{:?}",
        sandbox.about()
    );
    let script = "\
import os, glob, signal, ctypes
def attempt(what, do):
    try:
        do()
        print('REACHED', what)
    except OSError as e:
        pass
inits = ['1'] + [p for p in filter(str.isdigit, os.listdir('/proc')) if os.stat('/proc/' + p).st_uid == 0]
for pid in inits:
    for name in ['environ', 'mem', 'maps', 'auxv', 'syscall']:
        attempt(pid + '/' + name, lambda: open('/proc/%s/%s' % (pid, name), 'rb').read(1))
    for fd in ['0', '1', '2', '3', '4']:
        attempt(pid + '/fd/' + fd, lambda: os.open('/proc/%s/fd/%s' % (pid, fd), os.O_WRONLY))
    attempt(pid + '/root', lambda: os.listdir('/proc/%s/root/' % pid))
    attempt(pid + '/cwd', lambda: os.listdir('/proc/%s/cwd/' % pid))
    for number in [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 0]:
        attempt(pid + ' signal', lambda: os.kill(int(pid), number))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, int(pid), 0, 0) == 0: print('REACHED ptrace', pid)
attempt('init file', lambda: open('/.hothouse/init', 'r+b'))
attempt('root', lambda: open('/file', 'w'))
attempt('usr', lambda: open('/usr/file', 'w'))
print(sorted(os.listdir('/proc/self/fd')))
";
    let done = run(&sandbox, python(script)).await;
    // The fourth is the folder that is being listed.
    assert_eq!(
        (done.text().as_str(), done.exit.code),
        ("['0', '1', '2', '3']", Some(0)),
        "{done:?}"
    );
    let suicide = run(&sandbox, python("import os; os.kill(-1, 9)")).await;
    assert_eq!(
        suicide.exit.code,
        Some(0),
        "it is the only one whom it may kill, and kill(-1) spares the caller"
    );
    sandbox.ping(LONG).await.unwrap();
    assert!(run(&sandbox, spec(&["true"])).await.exit.is_success());
}

/// What init answers until it closes the pipe, after a hello and then `wire`.
async fn tell_raw(subject: &Subject, wire: impl FnOnce(&Token) -> BytesMut) -> Vec<FromInit> {
    let mut pipe = subject.driver.start(&subject.spec()).await.unwrap();
    let token = Token::new(*b"sixteen bytes ok");
    let greeting = Greeting {
        version: VERSION,
        uid: 1000,
        gid: 1000,
        workspace: "/workspace".to_owned(),
        listen: Vec::new(),
    };
    let mut hello = BytesMut::new();
    Frame::from(ToInit::Hello(greeting)).encode(&token, &mut hello).unwrap();
    hello.extend_from_slice(&wire(&token));
    // It may close before it has read everything.
    let _is_written = pipe.writer.write_all(&hello).await.is_ok() && pipe.writer.flush().await.is_ok();
    let (mut decoder, mut input, mut heard) = (Decoder::expecting(token), BytesMut::new(), Vec::new());
    while tokio::time::timeout(LONG, pipe.reader.read_buf(&mut input))
        .await
        .unwrap()
        .unwrap_or(0)
        > 0
    {
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            heard.push(FromInit::try_from(frame).unwrap());
        }
    }
    heard
}

pub(crate) async fn a_forged_frame_ends_the_sandbox(subject: &Subject) {
    let ping = |token: &Token, nonce| {
        let mut wire = BytesMut::new();
        Frame::from(ToInit::Ping { nonce }).encode(token, &mut wire).unwrap();
        wire
    };
    let heard = tell_raw(subject, |token| {
        [ping(token, 1), ping(&Token::new([0; 16]), 2), ping(token, 3)].concat()[..].into()
    });
    let heard = heard.await;
    assert_matches!(
        heard[..],
        [] | [FromInit::Hello(_)] | [FromInit::Hello(_), FromInit::Pong { nonce: 1 }]
    );
}

pub(crate) async fn rubbish_ends_the_sandbox(subject: &Subject) {
    for seed in 0..8_u8 {
        let rubbish = |token: &Token| {
            let mut wire = BytesMut::new();
            match seed {
                // A frame that is right but for its meaning.
                0 => Frame::new(Kind::Run, 1, "not json").encode(token, &mut wire).unwrap(),
                1 => Frame::new(Kind::Exit, 1, "{}").encode(token, &mut wire).unwrap(),
                2 => Frame::new(Kind::Credit, 1, "12").encode(token, &mut wire).unwrap(),
                _ => wire.extend((0..3_000_u32).map(|n| (n * 31 + u32::from(seed) * 17).to_le_bytes()[0] ^ seed)),
            }
            wire
        };
        let heard = tell_raw(subject, rubbish).await;
        assert!(
            heard.iter().all(|message| matches!(message, FromInit::Hello(_))),
            "{seed}: {heard:?}"
        );
    }
}

pub(crate) async fn a_job_has_no_privileges(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let done = run(
        &sandbox,
        sh("grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Groups)' /proc/self/status; id -u; ulimit -c"),
    )
    .await;
    let none = "0000000000000000";
    let lines: Vec<_> = done
        .text()
        .lines()
        .map(|line| line.split_whitespace().last().unwrap_or("").to_owned())
        .collect();
    assert_eq!(lines[..6], ["Groups:", none, none, none, none, "1"]);
    assert_ne!(lines[6], "0");
    assert_eq!(lines[7], "0");
    let attempts = "mount -t tmpfs x /workspace || unshare -Ur true || unshare -n true || chroot / true || \
                    mknod /workspace/d b 8 0 || chown 0 /workspace || su -c true || dmesg";
    let done = run(&sandbox, sh(&format!("({attempts}) 2>/dev/null"))).await;
    assert!(!done.exit.is_success(), "{}", done.text());
    let found = run(
        &sandbox,
        sh("find / -xdev -perm /6000 -type f 2>/dev/null | head -1; awk '$2==\"/\"' /proc/mounts"),
    )
    .await;
    assert!(
        found.text().contains("nosuid") || !found.text().starts_with('/'),
        "{}",
        found.text()
    );
}

pub(crate) async fn there_is_no_network(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let script = "\
import os, socket
print(sorted(os.listdir('/sys/class/net')) if os.path.isdir('/sys/class/net') else ['lo'])
for address in [('169.254.169.254', 80), ('10.0.0.1', 22), ('172.17.0.1', 80), ('8.8.8.8', 53)]:
    for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM]:
        s = socket.socket(socket.AF_INET, kind)
        s.settimeout(2)
        try: s.connect(address); print('REACHED', address)
        except OSError: pass
try: socket.getaddrinfo('example.com', 80); print('RESOLVED')
except OSError: pass
for family in [17, 40, 38]:
    try: socket.socket(family, socket.SOCK_RAW); print('FAMILY', family)
    except OSError: pass
server = socket.create_server(('127.0.0.1', 0))
socket.create_connection(server.getsockname(), 5)
print('loopback')
";
    let done = run(&sandbox, python(script)).await;
    assert_eq!(
        done.text(),
        "['lo']\nloopback",
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

pub(crate) async fn nothing_of_the_host_is_visible(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let own = env!("CARGO_MANIFEST_DIR");
    let script = format!(
        "test -e {own} && echo tree; ls /root /home/* /srv/* 2>/dev/null; ls /var/run/docker.sock /run/* 2>/dev/null \
         | grep -E 'sock|pid'; env | grep -vE '^(PATH|PWD|OLDPWD|_|SHLVL)='; hostname | grep -Fx \"$HOST\"; true"
    );
    let mut spec = sh(&script);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim_end();
    spec.env.push(("HOST".to_owned(), host.to_owned()));
    let done = run(&sandbox, spec).await;
    assert_eq!(done.text(), format!("HOST={host}"));
    let count = "ls /proc | grep -c '^[0-9]*$'";
    let processes: u32 = run(&sandbox, sh(count)).await.text().parse().unwrap();
    assert!(processes < 10, "{processes} processes are visible");
}
