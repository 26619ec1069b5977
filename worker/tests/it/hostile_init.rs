//! The worker's end of the pipe against inits that say anything in any order: it never panics, holds no more than the
//! windows allow, and everybody who waits is answered or told that the sandbox is gone.
//!
//! `HOTHOUSE_FUZZ_SECONDS` goes on for so long instead of a number of cases; see `make fuzz`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::Cell;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hothouse_protocol::{
    Channel, Decoder, Failure, FailureCode, Frame, FromInit, HEAD_LEN, Kind, PAYLOAD_MAX, Rested, TUNNEL_BIT,
    TUNNEL_WINDOW, TUNNELS_MAX, ToInit, Token, WINDOW, cost,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use worker::sandbox::{Lost, Output, RunSpec, Running, Sandbox, Tunnels};

use crate::docker::test_variable;
use crate::sandbox_link::{Init, LONG, about, connected, exit};

/// The stream of the program that inits talk about most.
const RUN: u32 = 2;

/// What an init does next.
#[derive(Debug, Clone)]
enum Act {
    Say(FromInit),
    /// A frame of any kind with any payload.
    Frame(u8, u8, u32, Bytes),
    /// A frame with another secret.
    Forge(FromInit),
    /// Bytes that are no frame.
    Rubbish(Vec<u8>),
    /// The worker's program reads so many pieces.
    Read(usize),
}

fn stream() -> impl Strategy<Value = u32> {
    // That of the run, those around it, tunnels, and anything.
    prop_oneof![
        6 => Just(RUN),
        2 => 0..5_u32,
        4 => (0..6_u32).prop_map(|n| TUNNEL_BIT | n),
        1 => any::<u32>(),
    ]
}

fn data() -> impl Strategy<Value = Bytes> {
    let size = prop_oneof![4 => 0..64_usize, 2 => 0..70_000_usize, 1 => Just(262_144_usize)];
    size.prop_map(|size| Bytes::from(vec![b'x'; size]))
}

fn credit() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..5_000_u32, Just(WINDOW), Just(TUNNEL_WINDOW), Just(u32::MAX)]
}

fn channel() -> impl Strategy<Value = Channel> {
    prop_oneof![Just(Channel::Stdout), Just(Channel::Stderr)]
}

fn message() -> impl Strategy<Value = FromInit> {
    prop_oneof![
        1 => Just(FromInit::Hello(about())),
        3 => stream().prop_map(|stream| FromInit::Started { stream, at_us: 2 }),
        8 => (stream(), channel(), data())
            .prop_map(|(stream, channel, data)| FromInit::Output { stream, channel, data }),
        2 => (stream(), channel(), any::<u64>())
            .prop_map(|(stream, channel, dropped)| FromInit::Cut { stream, channel, dropped }),
        1 => (stream(), any::<u64>())
            .prop_map(|(stream, sent)| FromInit::Exit { stream, exit: Box::new(exit(sent)) }),
        1 => stream().prop_map(|stream| FromInit::Failed {
            stream,
            failure: Failure { code: FailureCode::Internal, message: "no".to_owned() },
        }),
        3 => (stream(), credit()).prop_map(|(stream, credit)| FromInit::Credit { stream, credit }),
        1 => any::<u64>().prop_map(|nonce| FromInit::Pong { nonce }),
        2 => stream().prop_map(|stream| FromInit::Done { stream }),
        2 => stream().prop_map(|stream| FromInit::Rested { stream, rested: Rested::default() }),
        5 => (stream(), any::<u16>()).prop_map(|(stream, port)| FromInit::Open { stream, port }),
        6 => (stream(), data(), any::<bool>())
            .prop_map(|(stream, data, is_end)| FromInit::Data { stream, data, is_end }),
        3 => stream().prop_map(|stream| FromInit::Close { stream }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        40 => message().prop_map(Act::Say),
        2 => (any::<u8>(), any::<u8>(), stream(), data()).prop_map(|(kind, flags, stream, data)| {
            Act::Frame(kind % 0x24, flags, stream, data)
        }),
        1 => message().prop_map(Act::Forge),
        1 => proptest::collection::vec(any::<u8>(), 1..80).prop_map(Act::Rubbish),
        6 => (1..8_usize).prop_map(Act::Read),
    ]
}

/// The bytes of an act; whether they are none of this connection.
fn wire(act: &Act, token: &Token) -> (BytesMut, bool) {
    let mut wire = BytesMut::new();
    let frame = |message: &FromInit| Frame::from(message.clone());
    let is_foreign = match act {
        Act::Say(message) => {
            frame(message).encode(token, &mut wire).unwrap();
            false
        }
        Act::Frame(kind, flags, stream, data) => {
            let mut frame = Frame::new(Kind::Ping, *stream, data.clone());
            frame.flags = *flags;
            frame.encode(token, &mut wire).unwrap();
            wire[0] = *kind;
            false
        }
        Act::Forge(message) => {
            frame(message).encode(&Token::new([0; 16]), &mut wire).unwrap();
            true
        }
        Act::Rubbish(bytes) => {
            wire.extend_from_slice(bytes);
            // Anything may follow that makes it a frame; its secret will not.
            wire.resize(wire.len().max(HEAD_LEN), 0xff);
            true
        }
        Act::Read(_) => false,
    };
    (wire, is_foreign)
}

/// Reads what the worker says until it ends, and answers nothing.
async fn listen(mut from_worker: DuplexStream, mut wire: BytesMut, mut decoder: Decoder) {
    loop {
        while let Some(frame) = decoder.decode(&mut wire).unwrap() {
            ToInit::try_from(frame).unwrap();
        }
        if from_worker.read_buf(&mut wire).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// Whether an act is more output than an init may send to a program of which nobody reads anything.
#[derive(Default)]
struct Model {
    sent: [u32; 2],
    is_over: bool,
}

impl Model {
    fn breaks(&mut self, act: &Act) -> bool {
        match act {
            Act::Say(FromInit::Exit { stream: RUN, .. } | FromInit::Failed { stream: RUN, .. }) => self.is_over = true,
            Act::Say(FromInit::Output {
                stream: RUN,
                channel,
                data,
            }) if !self.is_over => {
                let sent = &mut self.sent[*channel as usize];
                *sent = sent.saturating_add(cost(data.len()));
                return *sent > WINDOW;
            }
            _ => {}
        }
        false
    }
}

/// Starts a program that runs.
async fn started(sandbox: &Sandbox, init: &mut Init) -> Running {
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            unreachable!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
    };
    tokio::join!(sandbox.run(RunSpec::new(["cat"])), answer).0.unwrap()
}

/// Plays one hostile init to its end.
async fn play(acts: Vec<Act>) {
    let (sandbox, mut init) = connected().await;
    let tunnels = sandbox.tunnels();
    let first = started(&sandbox, &mut init).await;
    let mut second = started(&sandbox, &mut init).await;
    let token = init.decoder.token().unwrap();
    let Init {
        from_worker,
        mut to_worker,
        wire: heard,
        decoder,
    } = init;
    let mut listening = JoinSet::new();
    listening.spawn(listen(from_worker, heard, decoder));

    let is_read = acts.iter().any(|act| matches!(act, Act::Read(_)));
    let (mut model, mut must_end) = (Model::default(), false);
    for act in &acts {
        let (bytes, is_foreign) = wire(act, &token);
        must_end |= is_foreign || (model.breaks(act) && !is_read);
        if let Act::Read(pieces) = act {
            for _ in 0..*pieces {
                let next = timeout(Duration::from_millis(1), second.next()).await;
                if !matches!(next, Ok(Some(_))) {
                    break;
                }
            }
        } else if to_worker.write_all(&bytes).await.is_err() {
            break;
        }
    }
    if must_end {
        // The rest of a frame that was begun.
        drop(to_worker.write_all(&vec![0xff; HEAD_LEN + PAYLOAD_MAX]).await);
        let lost = timeout(LONG, sandbox.ended()).await.unwrap();
        assert!(matches!(lost, Lost::Broken(_) | Lost::Refused(_)), "{lost:?}");
    }
    drop(to_worker);
    // With its pipe closed everybody is told, whatever was said before.
    let told = async {
        sandbox.ended().await;
        assert!(sandbox.ping(LONG).await.is_err());
        assert!(sandbox.kill_all().await.is_err());
        assert!(sandbox.run(RunSpec::new(["true"])).await.is_err());
    };
    timeout(LONG, told).await.unwrap();
    let held = held(second).await;
    assert!(held <= 2 * u64::from(WINDOW), "{held} bytes were held for one program");
    if let Some(tunnels) = tunnels {
        all_are_bounded(tunnels).await;
    }
    drop((first, sandbox));
    timeout(LONG, listening.join_all()).await.unwrap();
}

async fn all_are_bounded(mut tunnels: Tunnels) {
    let mut open = 0;
    while let Some(mut tunnel) = tunnels.accept().await {
        open += 1;
        let mut held = 0;
        while let Ok(Some(data)) = tunnel.reader.next().await {
            held += u64::from(cost(data.len()));
        }
        assert!(
            held <= u64::from(TUNNEL_WINDOW),
            "{held} bytes were held for one tunnel"
        );
    }
    assert!(open <= 2 * TUNNELS_MAX, "{open} tunnels");
}

/// What is still there for somebody who reads at last, in credit.
async fn held(mut running: Running) -> u64 {
    let mut held = 0;
    while let Some(output) = running.next().await {
        if let Output::Stdout(data) | Output::Stderr(data) = output {
            held += u64::from(cost(data.len()));
        }
    }
    held
}

#[test]
fn a_worker_stands_whatever_an_init_says() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let seconds = test_variable("HOTHOUSE_FUZZ_SECONDS").and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let played = Cell::new(0_u64);
    loop {
        let mut runner = TestRunner::new(Config {
            cases: 200,
            failure_persistence: None,
            ..Config::default()
        });
        let acts = proptest::collection::vec(act(), 0..60);
        runner
            .run(&acts, |acts| {
                played.set(played.get() + 1);
                runtime.block_on(play(acts));
                Ok(())
            })
            .unwrap();
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
    }
    show(&format!("{} hostile inits", played.get()));
}

#[expect(clippy::print_stderr, reason = "what a long run did")]
fn show(text: &str) {
    eprintln!("{text}");
}
