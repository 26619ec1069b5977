//! The worker's end of the pipe against inits that lie, break, or are not there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use assert_matches::assert_matches;
use bytes::{Bytes, BytesMut};
use hothouse_protocol::{
    About, CgroupKind, Channel, Decoder, Exit, Frame, FromInit, Oom, StreamTotals, ToInit, Token, VERSION, WINDOW,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use worker::driver::Pipe;
use worker::sandbox::{Error, Lost, Output, RunSpec, Sandbox, Settings};

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// An init that says what a test wants.
pub(crate) struct Init {
    pub(crate) from_worker: DuplexStream,
    pub(crate) to_worker: DuplexStream,
    pub(crate) wire: BytesMut,
    pub(crate) decoder: Decoder,
}

impl Init {
    pub(crate) fn pipe() -> (Self, Pipe) {
        let (writer, from_worker) = tokio::io::duplex(64 * 1024);
        let (to_worker, reader) = tokio::io::duplex(64 * 1024);
        let init = Self {
            from_worker,
            to_worker,
            wire: BytesMut::new(),
            decoder: Decoder::adopting(),
        };
        (
            init,
            Pipe {
                reader: Box::new(reader),
                writer: Box::new(writer),
            },
        )
    }

    pub(crate) async fn hear(&mut self) -> ToInit {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.wire).unwrap() {
                return ToInit::try_from(frame).unwrap();
            }
            assert_ne!(
                self.from_worker.read_buf(&mut self.wire).await.unwrap(),
                0,
                "the worker closed the pipe"
            );
        }
    }

    pub(crate) async fn say(&mut self, message: FromInit) {
        let token = self.decoder.token().unwrap();
        self.say_with(message, &token).await;
    }

    async fn say_with(&mut self, message: FromInit, token: &Token) {
        let mut wire = BytesMut::new();
        Frame::from(message).encode(token, &mut wire).unwrap();
        self.to_worker.write_all(&wire).await.unwrap();
    }

    /// Answers the hello and the first ping.
    async fn greet(&mut self, about: About) {
        assert_matches!(self.hear().await, ToInit::Hello(_));
        self.say(FromInit::Hello(about)).await;
        if let ToInit::Ping { nonce } = self.hear().await {
            self.say(FromInit::Pong { nonce }).await;
        }
    }
}

pub(crate) fn about() -> About {
    About {
        version: VERSION,
        init_version: "test".to_owned(),
        is_pid1: true,
        has_own_uid: true,
        is_undumpable: true,
        no_new_privs: true,
        can_kill: true,
        has_read_only_root: true,
        cgroup: CgroupKind::None,
        writable_mounts: Vec::new(),
        ports: vec![hothouse_protocol::PROXY_PORT],
        can_rest: true,
        can_reset: true,
    }
}

pub(crate) fn exit(sent: u64) -> Exit {
    Exit {
        code: Some(0),
        signal: None,
        timed_out: false,
        output_limit: false,
        killed: false,
        oom: Oom::No,
        cpu_us: 0,
        memory_peak_bytes: 0,
        wall_us: 0,
        full_mounts: Vec::new(),
        stdout: StreamTotals {
            bytes: sent,
            sent,
            dropped: 0,
        },
        stderr: StreamTotals::default(),
    }
}

/// A sandbox over a willing init.
pub(crate) async fn connected() -> (Sandbox, Init) {
    let (mut init, pipe) = Init::pipe();
    let settings = Settings::default();
    let (sandbox, ()) = tokio::join!(Sandbox::connect(pipe, &settings), init.greet(about()));
    (sandbox.unwrap(), init)
}

#[tokio::test]
async fn an_init_that_is_unfit_is_refused() {
    let cases = [
        About {
            version: VERSION + 1,
            ..about()
        },
        About {
            is_pid1: false,
            ..about()
        },
        About {
            is_undumpable: false,
            ..about()
        },
        About {
            no_new_privs: false,
            ..about()
        },
        About {
            can_kill: false,
            ..about()
        },
        About {
            has_own_uid: false,
            ..about()
        },
    ];
    let settings = Settings {
        must_have_own_uid: true,
        ..Settings::default()
    };
    for case in cases {
        let (mut init, pipe) = Init::pipe();
        let answer = async {
            assert_matches!(init.hear().await, ToInit::Hello(_));
            init.say(FromInit::Hello(case)).await;
            // Its pipe is closed, and so it ends.
            assert_eq!(init.from_worker.read_buf(&mut init.wire).await.unwrap(), 0);
        };
        let (refused, ()) = tokio::join!(Sandbox::connect(pipe, &settings), answer);
        assert_matches!(refused, Err(Error::Unfit { .. } | Error::Version { .. }));
    }
}

#[tokio::test]
async fn an_init_that_is_silent_is_given_up() {
    let (_init, pipe) = Init::pipe();
    let settings = Settings {
        hello_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let refused = Sandbox::connect(pipe, &settings).await;
    assert_matches!(refused, Err(error @ Error::NoAnswer { .. }) if error.is_transient());
}

#[tokio::test]
async fn an_init_that_lies_about_a_start_is_believed_within_reason() {
    let (sandbox, mut init) = connected().await;
    // Since the machine was started, and at the end of all time.
    for at_us in [0, u64::MAX] {
        let asked = Instant::now();
        let run = sandbox.run(RunSpec::new(["true"]));
        let answer = async {
            let ToInit::Run { stream, .. } = init.hear().await else {
                panic!("a run")
            };
            init.say(FromInit::Started { stream, at_us }).await;
        };
        let (run, ()) = tokio::join!(run, answer);
        let run = run.unwrap();
        assert!(run.began_ago() <= asked.elapsed(), "{:?}", run.began_ago());
        drop(run);
        assert_matches!(init.hear().await, ToInit::Kill { .. });
    }
}

#[tokio::test]
async fn a_forged_frame_ends_the_sandbox() {
    let (sandbox, mut init) = connected().await;
    let run = sandbox.run(RunSpec::new(["true"]));
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            panic!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
        // What a program would write that got hold of init's output: right in all but the secret.
        init.say_with(
            FromInit::Exit {
                stream,
                exit: Box::new(exit(0)),
            },
            &Token::new([0; 16]),
        )
        .await;
    };
    let (run, ()) = tokio::join!(run, answer);
    let ended = run.unwrap().wait().await;
    assert_matches!(ended, Err(Error::Lost(Lost::Refused(hothouse_protocol::Error::Forged))));
    assert!(!sandbox.is_alive());
    assert_matches!(sandbox.ping(LONG).await, Err(Error::Lost(Lost::Refused(_))));
}

#[tokio::test]
async fn output_beyond_the_window_ends_the_sandbox() {
    let (sandbox, mut init) = connected().await;
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            panic!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
        // Nobody reads: frames of one byte each, many more than the window holds.
        let mut wire = BytesMut::new();
        let frame = Frame::from(FromInit::Output {
            stream,
            channel: Channel::Stdout,
            data: Bytes::from_static(b"x"),
        });
        for _ in 0..WINDOW {
            frame.encode(&init.decoder.token().unwrap(), &mut wire).unwrap();
        }
        assert!(
            init.to_worker.write_all(&wire).await.is_err(),
            "the worker took everything"
        );
    };
    let (run, ()) = tokio::join!(sandbox.run(RunSpec::new(["yes"])), answer);
    assert_matches!(sandbox.ended().await, Lost::Broken(_));
    drop(run);
}

#[tokio::test]
async fn credit_that_nobody_spent_ends_the_sandbox() {
    let (sandbox, mut init) = connected().await;
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            panic!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
        init.say(FromInit::Credit { stream, credit: 1 }).await;
    };
    let (run, ()) = tokio::join!(sandbox.run(RunSpec::new(["cat"])), answer);
    assert_matches!(sandbox.ended().await, Lost::Broken(_));
    drop(run);
}

#[tokio::test]
async fn output_that_went_missing_is_an_error() {
    let (sandbox, mut init) = connected().await;
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            panic!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
        let data = Bytes::from_static(b"four");
        init.say(FromInit::Output {
            stream,
            channel: Channel::Stdout,
            data: data.clone(),
        })
        .await;
        init.say(FromInit::Exit {
            stream,
            exit: Box::new(exit(5)),
        })
        .await;
        data
    };
    let (run, data) = tokio::join!(sandbox.run(RunSpec::new(["echo"])), answer);
    let mut run = run.unwrap();
    assert_eq!(run.next().await, Some(Output::Stdout(data)));
    assert_eq!(run.next().await, None);
    assert_matches!(run.wait().await, Err(Error::Incomplete { sent: 5, received: 4 }));
}

#[tokio::test]
async fn an_init_that_dies_is_told_to_everybody_who_waits() {
    let (sandbox, mut init) = connected().await;
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            panic!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
        drop(init);
    };
    let (run, ()) = tokio::join!(sandbox.run(RunSpec::new(["true"])), answer);
    let run = run.unwrap();
    let (stdin, ping, kill_all) = (run.stdin(), sandbox.ping(LONG), sandbox.kill_all());
    let large = stdin.write(vec![0; 1 << 20]);
    let (ended, pinged, killed, written) = tokio::join!(run.wait(), ping, kill_all, large);
    for result in [ended.map(drop), pinged, killed, written] {
        assert_matches!(result, Err(error @ Error::Lost(_)) if error.is_transient());
    }
}

#[tokio::test]
async fn a_run_that_is_dropped_is_killed_and_no_longer_listened_to() {
    let (sandbox, mut init) = connected().await;
    let answer = async {
        let ToInit::Run { stream, .. } = init.hear().await else {
            panic!("a run")
        };
        init.say(FromInit::Started { stream, at_us: 2 }).await;
        stream
    };
    let (run, stream) = tokio::join!(sandbox.run(RunSpec::new(["true"])), answer);
    drop(run.unwrap());
    assert_eq!(init.hear().await, ToInit::Kill { stream, discard: true });
    // Its last words reach nobody and harm nobody.
    init.say(FromInit::Exit {
        stream,
        exit: Box::new(exit(0)),
    })
    .await;
    let pong = async {
        let ToInit::Ping { nonce } = init.hear().await else {
            panic!("a ping")
        };
        init.say(FromInit::Pong { nonce }).await;
    };
    let (pinged, ()) = tokio::join!(sandbox.ping(LONG), pong);
    pinged.unwrap();
}
