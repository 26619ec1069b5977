//! What the tests of a pipe's two ends share: the words of a hostile end, and playing many such ends.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::cell::Cell;
use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hothouse_protocol::{Channel, Frame, HEAD_LEN, Kind, PAYLOAD_MAX, Token};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::docker::test_variable;

/// Of no connection.
const FORGED: Token = Token::new([0; 16]);

/// What an end says.
#[derive(Debug, Clone)]
pub(crate) enum Word<M> {
    /// What it may say, when it may or when it may not.
    Right(M),
    /// A frame of any kind with any payload.
    Frame(u8, u8, u32, Bytes),
    /// A frame with another secret.
    Forged(M),
    /// Bytes that are no frame.
    Rubbish(Vec<u8>),
}

impl<M: Clone> Word<M>
where
    Frame: From<M>,
{
    /// Its bytes; none for a message that is larger than a frame may be.
    pub(crate) fn wire(&self, token: &Token) -> Option<BytesMut> {
        let mut wire = BytesMut::new();
        match self {
            Self::Right(message) => Frame::from(message.clone()).encode(token, &mut wire).ok()?,
            Self::Forged(message) => Frame::from(message.clone()).encode(&FORGED, &mut wire).ok()?,
            Self::Frame(kind, flags, stream, data) => {
                let mut frame = Frame::new(Kind::Ping, *stream, data.clone());
                frame.flags = *flags;
                frame.encode(token, &mut wire).unwrap();
                wire[0] = *kind;
            }
            Self::Rubbish(bytes) => {
                wire.extend_from_slice(bytes);
                // Anything may follow that makes it a frame; its secret will not.
                wire.resize(wire.len().max(HEAD_LEN), 0xff);
            }
        }
        Some(wire)
    }

    /// Whether somebody else says it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self, Self::Forged(_) | Self::Rubbish(_))
    }
}

/// Mostly right messages, in so large a share, on these streams.
pub(crate) fn word<M: Debug + Clone>(
    right: u32,
    message: impl Strategy<Value = M> + Clone + 'static,
    stream: impl Strategy<Value = u32> + 'static,
) -> impl Strategy<Value = Word<M>> {
    prop_oneof![
        right => message.clone().prop_map(Word::Right),
        2 => (any::<u8>(), any::<u8>(), stream, data())
            .prop_map(|(kind, flags, stream, data)| Word::Frame(kind % 0x24, flags, stream, data)),
        1 => message.prop_map(Word::Forged),
        1 => proptest::collection::vec(any::<u8>(), 1..80).prop_map(Word::Rubbish),
    ]
}

/// Content of a frame, small mostly.
pub(crate) fn data() -> impl Strategy<Value = Bytes> {
    let size = prop_oneof![5 => 0..100_usize, 2 => 0..70_000_usize, 1 => Just(PAYLOAD_MAX)];
    size.prop_map(|size| Bytes::from(vec![b'x'; size]))
}

/// One of a program's outputs.
pub(crate) fn channel() -> impl Strategy<Value = Channel> {
    prop_oneof![Just(Channel::Stdout), Just(Channel::Stderr)]
}

/// Plays so many ends, or for `HOTHOUSE_FUZZ_SECONDS`, each with acts of its own.
pub(crate) fn play_many<A, P>(what: &str, cases: u32, acts: &impl Strategy<Value = Vec<A>>, play: impl Fn(Vec<A>) -> P)
where
    A: Debug,
    P: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let seconds = test_variable("HOTHOUSE_FUZZ_SECONDS").and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let played = Cell::new(0_u64);
    loop {
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        let run = |acts| {
            played.set(played.get() + 1);
            runtime.block_on(play(acts));
            Ok(())
        };
        TestRunner::new(config).run(acts, run).unwrap();
        if until.is_none_or(|until| Instant::now() >= until) {
            break;
        }
    }
    show(&format!("{} hostile {what}", played.get()));
}

#[expect(clippy::print_stderr, reason = "what a long run did")]
fn show(text: &str) {
    eprintln!("{text}");
}
