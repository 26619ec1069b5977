//! Init's end of the pipe, the real one as PID 1 of a namespace, against workers that say anything in any order: it
//! answers or ends the sandbox, never panics, never sends more than it has credit for, and stays small.
//!
//! `HOTHOUSE_FUZZ_SECONDS` goes on for so long instead of a number of cases; see `make fuzz`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::fs;

use bytes::BytesMut;
use hothouse_protocol::{
    Decoder, Exec, FromInit, Greeting, Pack, Program, Reset, Rlimits, Run, TUNNEL_BIT, TUNNEL_WINDOW, TerminalSize,
    TextFile, ToInit, Token, Unpack, VERSION, WINDOW, cost,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::ChildStdout;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::hostile::{Word, channel, data, play_many, word};
use crate::sandbox_bubblewrap::unsealed;
use crate::sandbox_link::LONG;

const TOKEN: Token = Token::new(*b"0123456789abcdef");
const LAST_PING: u64 = u64::MAX - 7;

/// More than all windows of a few programs, and less than a flood.
const RESIDENT_MAX: u64 = 48 << 20;

fn stream() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1..5_u32, 2 => (0..4_u32).prop_map(|n| TUNNEL_BIT | n), 1 => any::<u32>()]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..50_u64, 1..100_000_u64, any::<u64>(), Just(u64::MAX)]
}

fn path() -> impl Strategy<Value = String> {
    let odd = [
        "",
        "/",
        "..",
        "../../etc",
        "/workspace",
        "a/b",
        "a\0b",
        "/proc/1/mem",
        "\u{fffd}",
    ];
    prop_oneof![
        proptest::sample::select(odd.to_vec()).prop_map(str::to_owned),
        ".{0,40}"
    ]
}

fn exec() -> impl Strategy<Value = Exec> {
    let programs = [
        "true",
        "cat",
        "yes",
        "sleep 0.05",
        "env",
        "no-such",
        "/",
        "head -c 300000 /dev/zero",
        "kill -9 1",
    ];
    let argv = prop_oneof![
        9 => proptest::sample::select(programs.to_vec())
            .prop_map(|text| text.split(' ').map(str::to_owned).collect::<Vec<_>>()),
        1 => proptest::collection::vec(".{0,20}", 0..4),
    ];
    let terminal =
        proptest::option::of((any::<u16>(), any::<u16>()).prop_map(|(rows, cols)| TerminalSize { rows, cols }));
    let rlimits = (proptest::option::of(number()), proptest::option::of(number()));
    let files = proptest::collection::vec(
        (path(), ".{0,60}").prop_map(|(path, text)| TextFile { path, text }),
        0..3,
    );
    (argv, path(), any::<bool>(), rlimits, terminal, files).prop_map(
        |(argv, cwd, stdin, (nofile, cpu), terminal, files)| Exec {
            argv,
            env: vec![("PATH".to_owned(), "/usr/bin".to_owned())],
            files,
            cwd: if cwd.len() % 3 == 0 {
                cwd
            } else {
                "/workspace".to_owned()
            },
            stdin,
            rlimits: Rlimits {
                nofile,
                fsize_bytes: None,
                cpu_seconds: cpu,
            },
            terminal,
        },
    )
}

fn program() -> impl Strategy<Value = Program> {
    let pack = (path(), proptest::collection::vec(path(), 0..3), any::<bool>(), number());
    prop_oneof![
        12 => exec().prop_map(Program::Exec),
        2 => (path(), number(), number(), any::<bool>()).prop_map(|(dest, entries_max, bytes_max, outside_links)| {
            Program::Unpack(Unpack { dest, entries_max, bytes_max, outside_links })
        }),
        1 => pack.prop_map(|(root, globs, whole_tree, max)| {
            Program::Pack(Pack { root, globs, whole_tree, entries_max: max, bytes_max: max })
        }),
        1 => proptest::collection::vec(path(), 0..3).prop_map(|folders| Program::Reset(Reset { folders })),
    ]
}

fn run() -> impl Strategy<Value = Run> {
    let limits = (
        proptest::option::of(number()),
        number(),
        proptest::option::of(number()),
        proptest::option::of(number()),
    );
    (program(), limits, 0..65_536_u32).prop_map(
        |(program, (timeout_ms, grace_ms, head_bytes, kill_bytes), tail_bytes)| Run {
            program,
            timeout_ms,
            grace_ms,
            head_bytes,
            tail_bytes,
            kill_bytes,
        },
    )
}

fn message() -> impl Strategy<Value = ToInit> {
    let credit = || prop_oneof![Just(0), 1..100_000_u32, Just(u32::MAX)];
    prop_oneof![
        1 => Just(ToInit::Hello(greeting())),
        12 => (stream(), run()).prop_map(|(stream, run)| ToInit::Run { stream, run: Box::new(run) }),
        8 => (stream(), data(), any::<bool>())
            .prop_map(|(stream, data, is_end)| ToInit::Stdin { stream, data, is_end }),
        3 => (stream(), any::<i32>()).prop_map(|(stream, signal)| ToInit::Signal { stream, signal: signal % 70 }),
        3 => (stream(), any::<bool>()).prop_map(|(stream, discard)| ToInit::Kill { stream, discard }),
        1 => (stream(), any::<u16>(), any::<u16>())
            .prop_map(|(stream, rows, cols)| ToInit::Resize { stream, size: TerminalSize { rows, cols } }),
        4 => (stream(), channel(), credit())
            .prop_map(|(stream, channel, credit)| ToInit::Credit { stream, channel, credit }),
        // One that is short ends everything, as it should.
        2 => (2_000..u64::MAX).prop_map(|run_on_ms| ToInit::Lease { run_on_ms }),
        3 => (0..1_000_u64).prop_map(|nonce| ToInit::Ping { nonce }),
        1 => stream().prop_map(|stream| ToInit::KillAll { stream }),
        2 => stream().prop_map(|stream| ToInit::Rest { stream }),
        2 => stream().prop_map(|stream| ToInit::Reset { stream }),
        2 => (stream(), data(), any::<bool>()).prop_map(|(stream, data, is_end)| ToInit::Data { stream, data, is_end }),
        1 => (stream(), credit()).prop_map(|(stream, credit)| ToInit::TunnelCredit { stream, credit }),
        1 => stream().prop_map(|stream| ToInit::Close { stream }),
    ]
}

fn greeting() -> Greeting {
    Greeting {
        version: VERSION,
        uid: 1000,
        gid: 1000,
        workspace: "/workspace".to_owned(),
        listen: vec![3128],
    }
}

/// Credit that init had by the end, of each output and tunnel; it can only have had less when it spent it.
#[derive(Default)]
struct Credit(HashMap<(u32, u8), u64>);

impl Credit {
    fn of(words: &[Word<ToInit>]) -> Self {
        let mut given = Self::default();
        for word in words {
            let (key, credit) = match word {
                Word::Right(ToInit::Credit {
                    stream,
                    channel,
                    credit,
                }) => ((*stream, *channel as u8), *credit),
                Word::Right(ToInit::TunnelCredit { stream, credit }) => ((*stream, 9), *credit),
                // Whatever it turns out to mean.
                Word::Frame(_, _, stream, _) => {
                    for key in [0, 1, 9] {
                        given.0.insert((*stream, key), u64::MAX / 2);
                    }
                    continue;
                }
                // A stream may be used again once it is over, with a window of its own.
                Word::Right(ToInit::Run { stream, .. }) => {
                    for key in [0, 1] {
                        *given.0.entry((*stream, key)).or_default() += u64::from(WINDOW);
                    }
                    continue;
                }
                _ => continue,
            };
            let sum = given.0.entry(key).or_default();
            *sum = sum.saturating_add(u64::from(credit));
        }
        given
    }
}

/// Everything that init says until it ends, checked as it comes; whether the last ping was answered.
async fn listen(
    mut from_init: ChildStdout,
    credit: Credit,
    ping: tokio::sync::oneshot::Sender<()>,
) -> HashMap<(u32, u8), u64> {
    let (mut decoder, mut wire, mut spent) = (Decoder::expecting(TOKEN), BytesMut::new(), HashMap::new());
    let mut ping = Some(ping);
    loop {
        while let Some(frame) = decoder.decode(&mut wire).unwrap() {
            let (key, len) = match FromInit::try_from(frame).unwrap() {
                FromInit::Output { stream, channel, data } => ((stream, channel as u8), data.len()),
                FromInit::Data { stream, data, .. } => ((stream, 9), data.len()),
                FromInit::Pong { nonce: LAST_PING } => {
                    ping.take().map(|ping| ping.send(()));
                    continue;
                }
                _ => continue,
            };
            let spent = spent.entry(key).or_insert(0_u64);
            *spent += u64::from(cost(len));
            let base = if key.1 == 9 { u64::from(TUNNEL_WINDOW) } else { 0 };
            let had = credit.0.get(&key).copied().unwrap_or_default().saturating_add(base);
            assert!(*spent <= had, "{key:?}: spent {spent} of {had}");
        }
        if from_init.read_buf(&mut wire).await.unwrap() == 0 {
            return spent;
        }
    }
}

/// The most memory that the init below this `bwrap` has used.
fn resident(bwrap: u32) -> Option<u64> {
    let child = fs::read_to_string(format!("/proc/{bwrap}/task/{bwrap}/children")).ok()?;
    let status = fs::read_to_string(format!("/proc/{}/status", child.trim())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Plays one hostile worker to its end.
async fn play(words: Vec<Word<ToInit>>) {
    let mut child = unsealed().spawn().unwrap();
    let (mut to_init, from_init) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut stderr = child.stderr.take().unwrap();
    let (ping, pong) = tokio::sync::oneshot::channel();
    let mut listening = JoinSet::new();
    listening.spawn(listen(from_init, Credit::of(&words), ping));
    let pid = child.id().unwrap();

    let hello = Word::Right(ToInit::Hello(greeting()));
    let last = Word::Right(ToInit::Ping { nonce: LAST_PING });
    let must_end = words.iter().any(Word::is_foreign);
    let all = [&hello].into_iter().chain(&words).chain([&last]);
    for bytes in all.filter_map(|word| word.wire(&TOKEN)) {
        // It may end at any time; then it closes its input.
        if timeout(LONG, to_init.write_all(&bytes)).await.unwrap().is_err() {
            break;
        }
    }
    let is_answered = timeout(LONG, pong).await.unwrap().is_ok();
    assert!(!(is_answered && must_end), "it went on after bytes of somebody else");
    if is_answered && let Some(bytes) = resident(pid) {
        assert!(bytes < RESIDENT_MAX, "{bytes} bytes");
    }
    drop(to_init);
    let mut said = String::new();
    timeout(LONG, stderr.read_to_string(&mut said)).await.unwrap().unwrap();
    let status = timeout(LONG, child.wait()).await.unwrap().unwrap();
    let code = status.code();
    assert!(
        matches!(code, Some(0 | 1)) && !said.contains("panicked"),
        "{status:?}: {said}"
    );
    assert!(code == Some(0) || !is_answered, "{said}");
    listening.join_all().await;
}

#[test]
fn an_init_stands_whatever_a_worker_says() {
    let words = proptest::collection::vec(word(60, message().boxed(), stream()), 0..40);
    play_many("workers", 50, &words, play);
}
