//! The worker's end of the pipe against inits that say anything in any order: it never panics, holds no more than the
//! windows allow, and everybody who waits is answered or told that the sandbox is gone.
//!
//! `HOTHOUSE_FUZZ_SECONDS` goes on for so long instead of a number of cases; see `make fuzz`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use bytes::BytesMut;
use hothouse_protocol::{
    Decoder, Failure, FailureCode, FromInit, HEAD_LEN, PAYLOAD_MAX, Rested, TUNNEL_BIT, TUNNEL_WINDOW, TUNNELS_MAX,
    ToInit, WINDOW, cost,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use worker::sandbox::{Lost, Output, RunSpec, Running, Sandbox, Tunnels};

use crate::hostile::{Word, channel, data, play_many, word};
use crate::sandbox_link::{Init, LONG, about, connected, exit};

/// The stream of the program that inits talk about most.
const RUN: u32 = 2;

/// What an init does next.
#[derive(Debug, Clone)]
enum Act {
    Say(Word<FromInit>),
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

fn credit() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..5_000_u32, Just(WINDOW), Just(TUNNEL_WINDOW), Just(u32::MAX)]
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
        44 => word(40, message().boxed(), stream()).prop_map(Act::Say),
        6 => (1..8_usize).prop_map(Act::Read),
    ]
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
    fn breaks(&mut self, word: &Word<FromInit>) -> bool {
        match word {
            Word::Right(FromInit::Exit { stream: RUN, .. } | FromInit::Failed { stream: RUN, .. }) => {
                self.is_over = true;
            }
            Word::Right(FromInit::Output {
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

async fn read(program: &mut Running, pieces: usize) {
    for _ in 0..pieces {
        let next = timeout(Duration::from_millis(1), program.next()).await;
        if !matches!(next, Ok(Some(_))) {
            break;
        }
    }
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
        match act {
            Act::Say(word) => {
                must_end |= word.is_foreign() || (model.breaks(word) && !is_read);
                if to_worker.write_all(&word.wire(&token).unwrap()).await.is_err() {
                    break;
                }
            }
            Act::Read(pieces) => read(&mut second, *pieces).await,
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
    play_many("inits", 200, &proptest::collection::vec(act(), 0..60), play);
}
