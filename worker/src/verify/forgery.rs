//! Words in the name of init or of the worker.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use hothouse_protocol::{Decoder, Frame, FromInit, Greeting, Kind, PAYLOAD_MAX, ToInit, Token, VERSION, WINDOW};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bench::{Bench, Error, python, still_serves};
use super::{Attempt, Group, Verdict};

const LONG: Duration = Duration::from_secs(30);
const TOKEN: [u8; 16] = *b"a token of tests";

/// The attempts.
pub(super) const ATTEMPTS: &[Attempt] = &[
    forged("speak with another secret", |b| {
        ends_it(b, VERSION, |wire| ping(wire, &Token::new([0; 16]))).boxed()
    }),
    forged("speak rubbish", |b| {
        ends_it(b, VERSION, |wire| {
            wire.extend((0..3_000_u32).map(|n| (n * 31).to_le_bytes()[0]));
        })
        .boxed()
    }),
    forged("speak zeros", |b| {
        ends_it(b, VERSION, |wire| wire.extend([0; 4_096])).boxed()
    }),
    forged("ask for what is no request", |b| {
        ends_it(b, VERSION, |wire| put(wire, Frame::new(Kind::Run, 1, "not json"))).boxed()
    }),
    forged("speak as init to init", |b| {
        ends_it(b, VERSION, |wire| put(wire, Frame::new(Kind::Exit, 1, "{}"))).boxed()
    }),
    forged("give half a credit", |b| {
        ends_it(b, VERSION, |wire| put(wire, Frame::new(Kind::Credit, 1, "12"))).boxed()
    }),
    forged("announce more than a frame may hold", |b| {
        ends_it(b, VERSION, |wire| {
            let before = wire.len();
            put(wire, Frame::new(Kind::Stdin, 1, vec![0; PAYLOAD_MAX]));
            // The length is somewhere in the head; every byte of it set is more than any frame may hold.
            let head = wire.len() - PAYLOAD_MAX - before;
            wire[before..before + head.min(10)].fill(0xff);
        })
        .boxed()
    }),
    forged("send more input than its window", |b| {
        ends_it(b, VERSION, |wire| {
            put(
                wire,
                ToInit::Run {
                    stream: 1,
                    run: Box::new(sleeper()),
                },
            );
            for _ in 0..(2 * WINDOW as usize / PAYLOAD_MAX + 4) {
                put(wire, Frame::new(Kind::Stdin, 1, vec![0; PAYLOAD_MAX]));
            }
        })
        .boxed()
    }),
    forged("greet in another version", |b| refuses_version(b).boxed()),
    forged("write frames to its own output", |b| own_output(b).boxed()),
    forged("write frames to every descriptor it can open", |b| {
        every_descriptor(b).boxed()
    }),
    forged("exit in the name of another", |b| exits_for_another(b).boxed()),
];

const fn forged(name: &'static str, act: super::HostAttempt) -> Attempt {
    Attempt::host(Group::Forgery, name, act)
}

fn sleeper() -> hothouse_protocol::Run {
    let exec = hothouse_protocol::Exec {
        argv: vec!["/bin/sleep".to_owned(), "1000".to_owned()],
        env: Vec::new(),
        files: Vec::new(),
        cwd: "/".to_owned(),
        stdin: true,
        rlimits: hothouse_protocol::Rlimits::default(),
        terminal: None,
    };
    hothouse_protocol::Run {
        program: hothouse_protocol::Program::Exec(exec),
        timeout_ms: None,
        grace_ms: 0,
        head_bytes: None,
        tail_bytes: 0,
        kill_bytes: None,
    }
}

fn put(wire: &mut BytesMut, frame: impl Into<Frame>) {
    let encoded = frame.into().encode(&Token::new(TOKEN), wire);
    debug_assert!(encoded.is_ok(), "frames of this file fit");
}

fn ping(wire: &mut BytesMut, token: &Token) {
    let encoded = Frame::from(ToInit::Ping { nonce: 7 }).encode(token, wire);
    debug_assert!(encoded.is_ok(), "a ping fits");
}

/// What init says until it closes the pipe: a hello, then `wire`, then a ping that must not be answered.
async fn hear(bench: &Bench, version: u32, wire: impl FnOnce(&mut BytesMut)) -> Result<Option<Vec<FromInit>>, Error> {
    let pipe = bench.pipe().await?;
    let greeting = Greeting {
        version,
        uid: 1000,
        gid: 1000,
        workspace: "/workspace".to_owned(),
        listen: Vec::new(),
    };
    let mut said = BytesMut::new();
    put(&mut said, ToInit::Hello(greeting));
    wire(&mut said);
    ping(&mut said, &Token::new(TOKEN));
    let (mut reader, mut writer) = (pipe.reader, pipe.writer);
    let (mut decoder, mut input, mut heard) = (Decoder::expecting(Token::new(TOKEN)), BytesMut::new(), Vec::new());
    let speaking = async {
        // It may close before it has read everything, or leave the rest unread.
        drop(writer.write_all(&said).await);
        drop(writer.flush().await);
        std::future::pending::<()>().await;
    };
    let listening = async {
        while reader.read_buf(&mut input).await.unwrap_or(0) > 0 {
            while let Ok(Some(frame)) = decoder.decode(&mut input) {
                heard.extend(FromInit::try_from(frame));
            }
        }
    };
    let both = async {
        tokio::select! {
            () = speaking => {}
            () = listening => {}
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), both).await.is_ok();
    Ok(ended.then_some(heard))
}

async fn ends_it(bench: &Bench, version: u32, wire: impl FnOnce(&mut BytesMut) + Send) -> Result<Verdict, Error> {
    Ok(match hear(bench, version, wire).await? {
        None => Verdict::Broken("init listens on".to_owned()),
        Some(heard) if heard.iter().any(|message| matches!(message, FromInit::Pong { .. })) => {
            Verdict::Broken(format!("init answered: {heard:?}"))
        }
        Some(_) => Verdict::Held("the sandbox ended".to_owned()),
    })
}

/// The worker is the one that compares versions; init tells its own.
async fn refuses_version(bench: &Bench) -> Result<Verdict, Error> {
    let heard = hear(bench, VERSION + 1, |wire| wire.extend([0xff; 64])).await?;
    let told = heard.iter().flatten().find_map(|message| match message {
        FromInit::Hello(about) => Some(about.version),
        _ => None,
    });
    Ok(match told {
        Some(VERSION) | None => Verdict::Held("init told its own version or left".to_owned()),
        Some(other) => Verdict::Broken(format!("it says that it speaks version {other}")),
    })
}

/// Frames as a program could guess them, with every secret wrong.
fn guesses() -> String {
    let mut wire = BytesMut::new();
    for token in [[0; 16], [0xff; 16], TOKEN] {
        ping(&mut wire, &Token::new(token));
    }
    wire.iter()
        .fold(String::new(), |guess, byte| guess + &format!("\\x{byte:02x}"))
}

async fn own_output(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let code = format!(
        "import os\nfor fd in (1, 2): os.write(fd, b'{}' * 50)\nprint('end')",
        guesses()
    );
    let done = python(&sandbox, &code, LONG).await?;
    Ok(match still_serves(&sandbox).await {
        Ok(()) if done.exit.is_success() && done.stdout.ends_with("end\n") => {
            Verdict::Held("it came as the output that it is".to_owned())
        }
        Ok(()) => Verdict::Broken(format!("{done:?}")),
        Err(why) => Verdict::Broken(why),
    })
}

async fn every_descriptor(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let code = format!(
        "import glob, os\nown = str(os.getpid())\nwritten = []\nfor path in glob.glob('/proc/[0-9]*/fd/*') + glob.glob('/dev/pts/[0-9]*'):\n  if path.split('/')[2] in (own, 'self'): continue\n  try: os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), b'{}'); written.append(path)\n  except OSError: pass\nprint(written)",
        guesses()
    );
    let done = python(&sandbox, &code, LONG).await?;
    Ok(match still_serves(&sandbox).await {
        Ok(()) if done.stdout == "[]\n" => Verdict::Held("it can open none".to_owned()),
        Ok(()) => Verdict::Broken(format!("it wrote to {}", done.stdout.trim())),
        Err(why) => Verdict::Broken(why),
    })
}

/// A program that kills its supervisor would leave init to guess how it ended.
async fn exits_for_another(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let code = "import os, signal\nfor pid in (os.getppid(), 1):\n  for number in (9, 19, 15):\n    try: os.kill(pid, number)\n    except OSError: pass\nos._exit(7)";
    let done = python(&sandbox, code, LONG).await?;
    Ok(match still_serves(&sandbox).await {
        Ok(()) if done.exit.code == Some(7) => Verdict::Held("its own end was told".to_owned()),
        Ok(()) => Verdict::Broken(format!("{:?}", done.exit)),
        Err(why) => Verdict::Broken(why),
    })
}
