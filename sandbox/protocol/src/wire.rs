//! How messages are written as frames and read from them.

use bytes::{Buf, Bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Channel, Error, Frame, FromInit, Kind, TUNNEL_BIT, ToInit};

const END: u8 = 1;
const DISCARD: u8 = 1;

impl Channel {
    const fn flag(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    const fn from_flag(flag: u8) -> Option<Self> {
        match flag {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

impl From<ToInit> for Frame {
    fn from(message: ToInit) -> Self {
        match message {
            ToInit::Hello(greeting) => Self::new(Kind::Hello, 0, json(&greeting)),
            ToInit::Run { stream, run } => Self::new(Kind::Run, stream, json(&run)),
            ToInit::Stdin { stream, data, is_end } => Self {
                flags: if is_end { END } else { 0 },
                ..Self::new(Kind::Stdin, stream, data)
            },
            ToInit::Signal { stream, signal } => {
                Self::new(Kind::Signal, stream, Bytes::copy_from_slice(&signal.to_be_bytes()))
            }
            ToInit::Kill { stream, discard } => Self {
                flags: if discard { DISCARD } else { 0 },
                ..Self::new(Kind::Kill, stream, Bytes::new())
            },
            ToInit::Resize { stream, size } => Self::new(Kind::Resize, stream, json(&size)),
            ToInit::Credit {
                stream,
                channel,
                credit,
            } => Self {
                flags: channel.flag(),
                ..Self::new(Kind::Credit, stream, Bytes::copy_from_slice(&credit.to_be_bytes()))
            },
            ToInit::Lease { run_on_ms } => Self::new(Kind::Lease, 0, Bytes::copy_from_slice(&run_on_ms.to_be_bytes())),
            ToInit::Ping { nonce } => Self::new(Kind::Ping, 0, Bytes::copy_from_slice(&nonce.to_be_bytes())),
            ToInit::KillAll { stream } => Self::new(Kind::KillAll, stream, Bytes::new()),
            ToInit::Rest { stream } => Self::new(Kind::Rest, stream, Bytes::new()),
            ToInit::Reset { stream } => Self::new(Kind::Reset, stream, Bytes::new()),
            ToInit::Data { stream, data, is_end } => data_frame(stream, data, is_end),
            ToInit::TunnelCredit { stream, credit } => {
                Self::new(Kind::Credit, stream, Bytes::copy_from_slice(&credit.to_be_bytes()))
            }
            ToInit::Close { stream } => Self::new(Kind::Close, stream, Bytes::new()),
        }
    }
}

impl TryFrom<Frame> for ToInit {
    type Error = Error;

    fn try_from(frame: Frame) -> Result<Self, Error> {
        let stream = frame.stream;
        Ok(match frame.kind {
            Kind::Hello => Self::Hello(parse(&frame)?),
            Kind::Run => Self::Run {
                stream,
                run: parse(&frame)?,
            },
            Kind::Stdin => Self::Stdin {
                stream,
                is_end: frame.flags & END != 0,
                data: frame.payload,
            },
            Kind::Signal => Self::Signal {
                stream,
                signal: i32::from_be_bytes(number(&frame)?),
            },
            Kind::Kill => Self::Kill {
                stream,
                discard: frame.flags & DISCARD != 0,
            },
            Kind::Resize => Self::Resize {
                stream,
                size: parse(&frame)?,
            },
            Kind::Credit if stream & TUNNEL_BIT != 0 => Self::TunnelCredit {
                stream,
                credit: u32::from_be_bytes(number(&frame)?),
            },
            Kind::Credit => Self::Credit {
                stream,
                channel: channel(&frame)?,
                credit: u32::from_be_bytes(number(&frame)?),
            },
            Kind::Lease => Self::Lease {
                run_on_ms: u64::from_be_bytes(number(&frame)?),
            },
            Kind::Ping => Self::Ping {
                nonce: u64::from_be_bytes(number(&frame)?),
            },
            Kind::KillAll => Self::KillAll { stream },
            Kind::Rest => Self::Rest { stream },
            Kind::Reset => Self::Reset { stream },
            Kind::Data => Self::Data {
                stream,
                is_end: frame.flags & END != 0,
                data: frame.payload,
            },
            Kind::Close => Self::Close { stream },
            Kind::Started
            | Kind::Stdout
            | Kind::Stderr
            | Kind::Cut
            | Kind::Exit
            | Kind::Pong
            | Kind::Done
            | Kind::Failed
            | Kind::Open => return Err(Error::WrongEnd { kind: frame.kind }),
        })
    }
}

impl From<FromInit> for Frame {
    fn from(message: FromInit) -> Self {
        match message {
            FromInit::Hello(about) => Self::new(Kind::Hello, 0, json(&about)),
            FromInit::Started { stream, at_us } => {
                Self::new(Kind::Started, stream, Bytes::copy_from_slice(&at_us.to_be_bytes()))
            }
            FromInit::Output {
                stream,
                channel: Channel::Stdout,
                data,
            } => Self::new(Kind::Stdout, stream, data),
            FromInit::Output {
                stream,
                channel: Channel::Stderr,
                data,
            } => Self::new(Kind::Stderr, stream, data),
            FromInit::Cut {
                stream,
                channel,
                dropped,
            } => Self {
                flags: channel.flag(),
                ..Self::new(Kind::Cut, stream, Bytes::copy_from_slice(&dropped.to_be_bytes()))
            },
            FromInit::Exit { stream, exit } => Self::new(Kind::Exit, stream, json(&exit)),
            FromInit::Failed { stream, failure } => Self::new(Kind::Failed, stream, json(&failure)),
            FromInit::Credit { stream, credit } => {
                Self::new(Kind::Credit, stream, Bytes::copy_from_slice(&credit.to_be_bytes()))
            }
            FromInit::Pong { nonce } => Self::new(Kind::Pong, 0, Bytes::copy_from_slice(&nonce.to_be_bytes())),
            FromInit::Done { stream } => Self::new(Kind::Done, stream, Bytes::new()),
            FromInit::Rested { stream, rested } => Self::new(Kind::Rest, stream, json(&rested)),
            FromInit::Open { stream, port } => {
                Self::new(Kind::Open, stream, Bytes::copy_from_slice(&port.to_be_bytes()))
            }
            FromInit::Data { stream, data, is_end } => data_frame(stream, data, is_end),
            FromInit::Close { stream } => Self::new(Kind::Close, stream, Bytes::new()),
        }
    }
}

impl TryFrom<Frame> for FromInit {
    type Error = Error;

    fn try_from(frame: Frame) -> Result<Self, Error> {
        let stream = frame.stream;
        Ok(match frame.kind {
            Kind::Hello => Self::Hello(parse(&frame)?),
            Kind::Started => Self::Started {
                stream,
                at_us: u64::from_be_bytes(number(&frame)?),
            },
            Kind::Stdout => Self::Output {
                stream,
                channel: Channel::Stdout,
                data: frame.payload,
            },
            Kind::Stderr => Self::Output {
                stream,
                channel: Channel::Stderr,
                data: frame.payload,
            },
            Kind::Cut => Self::Cut {
                stream,
                channel: channel(&frame)?,
                dropped: u64::from_be_bytes(number(&frame)?),
            },
            Kind::Exit => Self::Exit {
                stream,
                exit: parse(&frame)?,
            },
            Kind::Failed => Self::Failed {
                stream,
                failure: parse(&frame)?,
            },
            Kind::Credit => Self::Credit {
                stream,
                credit: u32::from_be_bytes(number(&frame)?),
            },
            Kind::Pong => Self::Pong {
                nonce: u64::from_be_bytes(number(&frame)?),
            },
            Kind::Done => Self::Done { stream },
            Kind::Rest => Self::Rested {
                stream,
                rested: parse(&frame)?,
            },
            Kind::Open => Self::Open {
                stream,
                port: u16::from_be_bytes(number(&frame)?),
            },
            Kind::Data => Self::Data {
                stream,
                is_end: frame.flags & END != 0,
                data: frame.payload,
            },
            Kind::Close => Self::Close { stream },
            Kind::Run
            | Kind::Stdin
            | Kind::Signal
            | Kind::Kill
            | Kind::Resize
            | Kind::Lease
            | Kind::Ping
            | Kind::KillAll
            | Kind::Reset => return Err(Error::WrongEnd { kind: frame.kind }),
        })
    }
}

fn data_frame(stream: u32, data: Bytes, is_end: bool) -> Frame {
    Frame {
        flags: if is_end { END } else { 0 },
        ..Frame::new(Kind::Data, stream, data)
    }
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("structs of strings, numbers and lists serialise")
        .into()
}

fn parse<T: DeserializeOwned>(frame: &Frame) -> Result<T, Error> {
    serde_json::from_slice(&frame.payload).map_err(|e| malformed(frame, e.to_string()))
}

fn number<const N: usize>(frame: &Frame) -> Result<[u8; N], Error> {
    let mut payload = &frame.payload[..];
    if payload.len() != N {
        return Err(malformed(frame, format!("{} bytes instead of {N}", payload.len())));
    }
    let mut bytes = [0; N];
    payload.copy_to_slice(&mut bytes);
    Ok(bytes)
}

fn channel(frame: &Frame) -> Result<Channel, Error> {
    Channel::from_flag(frame.flags).ok_or_else(|| malformed(frame, format!("no channel {}", frame.flags)))
}

fn malformed(frame: &Frame, reason: String) -> Error {
    Error::Malformed {
        kind: frame.kind,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Exec, Exit, Failure, FailureCode, Greeting, Oom, Pack, Program, Reset, Rlimits, Run, StreamTotals,
        TerminalSize, TextFile, Unpack,
    };

    fn run(program: Program) -> ToInit {
        let run = Run {
            program,
            timeout_ms: Some(60_000),
            grace_ms: 2_000,
            head_bytes: Some(1),
            tail_bytes: 2,
            kill_bytes: None,
        };
        ToInit::Run {
            stream: 3,
            run: Box::new(run),
        }
    }

    #[test]
    fn what_the_worker_says_is_what_init_hears() {
        let exec = Exec {
            argv: vec!["sh".to_owned(), "-c".to_owned(), "echo \u{1f331} \0".to_owned()],
            env: vec![("PATH".to_owned(), "/usr/bin".to_owned())],
            files: vec![TextFile {
                path: "main.py".to_owned(),
                text: "print(1)\0".to_owned(),
            }],
            cwd: "/workspace".to_owned(),
            stdin: true,
            rlimits: Rlimits {
                nofile: Some(10),
                ..Rlimits::default()
            },
            terminal: Some(TerminalSize { rows: 24, cols: 80 }),
        };
        let unpack = Unpack {
            dest: String::new(),
            entries_max: 1,
            bytes_max: 2,
            outside_links: false,
        };
        let pack = Pack {
            root: "out".to_owned(),
            globs: vec!["**/*.png".to_owned()],
            whole_tree: true,
            entries_max: 1,
            bytes_max: 2,
        };
        let greeting = Greeting {
            version: 1,
            uid: 1000,
            gid: 1000,
            workspace: "/workspace".to_owned(),
            listen: vec![crate::PROXY_PORT],
        };
        for message in [
            ToInit::Hello(greeting),
            run(Program::Exec(exec)),
            run(Program::Unpack(unpack)),
            run(Program::Pack(pack)),
            run(Program::Reset(Reset {
                folders: vec!["/tmp".to_owned()],
            })),
            ToInit::Stdin {
                stream: 4,
                data: Bytes::from_static(b"\0\xff"),
                is_end: false,
            },
            ToInit::Stdin {
                stream: 4,
                data: Bytes::new(),
                is_end: true,
            },
            ToInit::Signal { stream: 4, signal: 15 },
            ToInit::Kill {
                stream: 4,
                discard: true,
            },
            ToInit::Kill {
                stream: 4,
                discard: false,
            },
            ToInit::Resize {
                stream: 4,
                size: TerminalSize { rows: 1, cols: 2 },
            },
            ToInit::Credit {
                stream: 4,
                channel: Channel::Stderr,
                credit: 77,
            },
            ToInit::Lease { run_on_ms: 5_000 },
            ToInit::Ping { nonce: u64::MAX },
            ToInit::KillAll { stream: 9 },
            ToInit::Rest { stream: 9 },
            ToInit::Reset { stream: 9 },
            ToInit::Data {
                stream: TUNNEL_BIT | 1,
                data: Bytes::from_static(b"\0\xff"),
                is_end: false,
            },
            ToInit::Data {
                stream: TUNNEL_BIT | 1,
                data: Bytes::new(),
                is_end: true,
            },
            ToInit::TunnelCredit {
                stream: TUNNEL_BIT | 1,
                credit: 9,
            },
            ToInit::Close { stream: TUNNEL_BIT },
        ] {
            assert_eq!(ToInit::try_from(Frame::from(message.clone())), Ok(message));
        }
    }

    #[test]
    fn what_init_says_is_what_the_worker_hears() {
        let exit = Exit {
            code: None,
            signal: Some(9),
            timed_out: true,
            output_limit: false,
            killed: false,
            oom: Oom::Unknown,
            cpu_us: 1,
            memory_peak_bytes: 2,
            wall_us: 3,
            full_mounts: vec![crate::FullMount {
                path: "/tmp".to_owned(),
                blocks: true,
                inodes: false,
            }],
            stdout: StreamTotals {
                bytes: 10,
                sent: 6,
                dropped: 4,
            },
            stderr: StreamTotals::default(),
        };
        let failure = Failure {
            code: FailureCode::NotFound,
            message: "no such program".to_owned(),
        };
        for message in [
            FromInit::Started { stream: 1, at_us: 7 },
            FromInit::Output {
                stream: 1,
                channel: Channel::Stdout,
                data: Bytes::from_static(b"\0\xff"),
            },
            FromInit::Output {
                stream: 1,
                channel: Channel::Stderr,
                data: Bytes::from_static(b"x"),
            },
            FromInit::Cut {
                stream: 1,
                channel: Channel::Stdout,
                dropped: u64::MAX,
            },
            FromInit::Exit {
                stream: 1,
                exit: Box::new(exit),
            },
            FromInit::Failed { stream: 1, failure },
            FromInit::Credit { stream: 1, credit: 5 },
            FromInit::Pong { nonce: 1 },
            FromInit::Done { stream: 1 },
            FromInit::Rested {
                stream: 1,
                rested: crate::Rested::default(),
            },
            FromInit::Open {
                stream: TUNNEL_BIT | 2,
                port: 3128,
            },
            FromInit::Data {
                stream: TUNNEL_BIT | 2,
                data: Bytes::from_static(b"x"),
                is_end: true,
            },
            FromInit::Close { stream: 1 },
        ] {
            assert_eq!(FromInit::try_from(Frame::from(message.clone())), Ok(message));
        }
    }

    #[test]
    fn greetings_of_before_tunnels_are_understood() {
        let greeting: Greeting =
            serde_json::from_str(r#"{"version":1,"uid":1,"gid":1,"workspace":"/workspace"}"#).unwrap();
        assert!(greeting.listen.is_empty());
        let about: crate::About = serde_json::from_str(
            r#"{"version":1,"init_version":"0","is_pid1":true,"has_own_uid":true,"is_undumpable":true,
                "no_new_privs":true,"can_kill":true,"has_read_only_root":true,"cgroup":"none","writable_mounts":[]}"#,
        )
        .unwrap();
        assert!(about.ports.is_empty());
    }

    #[test]
    fn only_init_opens_tunnels() {
        let frame = Frame::new(Kind::Open, TUNNEL_BIT, &b"\x0c\x38"[..]);
        assert_eq!(ToInit::try_from(frame), Err(Error::WrongEnd { kind: Kind::Open }));
    }

    proptest! {
        #[test]
        fn data_of_a_tunnel_passes_both_ways(
            number in any::<u32>(), data in proptest::collection::vec(any::<u8>(), 0..600), is_end in any::<bool>(),
        ) {
            let stream = number | TUNNEL_BIT;
            let (down, up) = (data.clone().into(), data.into());
            let down = ToInit::Data { stream, data: down, is_end };
            let up = FromInit::Data { stream, data: up, is_end };
            prop_assert_eq!(ToInit::try_from(Frame::from(down.clone())), Ok(down));
            prop_assert_eq!(FromInit::try_from(Frame::from(up.clone())), Ok(up));
        }

        #[test]
        fn no_payload_panics_either_end(
            kind in 0_u8..0x30, flags in any::<u8>(), stream in any::<u32>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let Some(kind) = kind_of(kind) else { return Ok(()) };
            let frame = Frame { kind, flags, stream, payload: payload.into() };
            drop((ToInit::try_from(frame.clone()), FromInit::try_from(frame)));
        }
    }

    fn kind_of(byte: u8) -> Option<Kind> {
        let mut wire = bytes::BytesMut::new();
        let token = crate::Token::new([0; 16]);
        Frame::new(Kind::Hello, 0, "").encode(&token, &mut wire).ok()?;
        wire[0] = byte;
        crate::Decoder::expecting(token)
            .decode(&mut wire)
            .ok()
            .flatten()
            .map(|frame| frame.kind)
    }
}
