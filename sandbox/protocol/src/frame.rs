//! Frames: the unit of the wire, and nothing about what they mean.
//!
//! `u8 kind | u8 flags | u32 stream | u32 len | 16 bytes token | payload`, numbers big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most bytes of payload in a frame.
pub const PAYLOAD_MAX: usize = 256 * 1024;

/// Bytes before the payload: kind, flags, stream, length and token.
pub const HEAD_LEN: usize = 1 + 1 + 4 + 4 + TOKEN_LEN;

const TOKEN_LEN: usize = 16;

/// The secret of one connection; see the crate's documentation for what it protects.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token([u8; TOKEN_LEN]);

impl Token {
    /// A token of these bytes, which must come from a secure random source.
    pub const fn new(bytes: [u8; TOKEN_LEN]) -> Self {
        Self(bytes)
    }

    /// Whether `other` is the same, in a time that does not depend on where they differ.
    fn matches(&self, other: &[u8]) -> bool {
        other.len() == TOKEN_LEN && self.0.iter().zip(other).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a frame is. The numbers are the wire's and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Opens the connection, both ways.
    Hello = 0x01,
    /// Starts a program on a new stream.
    Run = 0x02,
    /// The program runs.
    Started = 0x03,
    /// Input for a program; the flag 1 ends it.
    Stdin = 0x04,
    /// What a program wrote to its standard output.
    Stdout = 0x05,
    /// What a program wrote to its standard error.
    Stderr = 0x06,
    /// Output was dropped here.
    Cut = 0x07,
    /// The program and all its children are gone.
    Exit = 0x08,
    /// A signal for a program's process group.
    Signal = 0x09,
    /// Kill a program with all its children.
    Kill = 0x0a,
    /// A new size for a program's terminal.
    Resize = 0x0b,
    /// More credit for a channel.
    Credit = 0x0c,
    /// Run on for this long.
    Lease = 0x0d,
    /// Answer me.
    Ping = 0x0e,
    /// The answer.
    Pong = 0x0f,
    /// Kill everything but init.
    KillAll = 0x10,
    /// A request without another answer is done.
    Done = 0x11,
    /// A request could not be done.
    Failed = 0x12,
    /// Let one program rest and kill all others; the same kind answers.
    Rest = 0x13,
    /// Make the sandbox as it was before its first program.
    Reset = 0x14,
    /// A program connected: a tunnel begins.
    Open = 0x20,
    /// Bytes of a tunnel, both ways; the flag 1 ends that way.
    Data = 0x21,
    /// A tunnel is over, both ways at once.
    Close = 0x22,
}

impl Kind {
    const ALL: [Self; 23] = [
        Self::Hello,
        Self::Run,
        Self::Started,
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Cut,
        Self::Exit,
        Self::Signal,
        Self::Kill,
        Self::Resize,
        Self::Credit,
        Self::Lease,
        Self::Ping,
        Self::Pong,
        Self::KillAll,
        Self::Done,
        Self::Failed,
        Self::Rest,
        Self::Reset,
        Self::Open,
        Self::Data,
        Self::Close,
    ];

    fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One unit of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Depends on the kind.
    pub flags: u8,
    /// The stream it belongs to; 0 is the connection itself.
    pub stream: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Bytes,
}

impl Frame {
    /// A frame without flags.
    pub fn new(kind: Kind, stream: u32, payload: impl Into<Bytes>) -> Self {
        Self {
            kind,
            flags: 0,
            stream,
            payload: payload.into(),
        }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`Error::TooLong`] when the payload is over [`PAYLOAD_MAX`]; `out` is unchanged then.
    pub fn encode(&self, token: &Token, out: &mut BytesMut) -> Result<(), Error> {
        let len = self.payload.len();
        if len > PAYLOAD_MAX {
            return Err(Error::TooLong { len });
        }
        out.reserve(HEAD_LEN + len);
        out.put_u8(self.kind as u8);
        out.put_u8(self.flags);
        out.put_u32(self.stream);
        out.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        out.put_slice(&token.0);
        out.put_slice(&self.payload);
        Ok(())
    }
}

/// Takes frames out of a stream of bytes and refuses what is not one of this connection.
#[derive(Debug)]
pub struct Decoder {
    token: Option<Token>,
}

impl Decoder {
    /// For the worker, which chose the token.
    pub const fn expecting(token: Token) -> Self {
        Self { token: Some(token) }
    }

    /// For init: the first frame must be [`Kind::Hello`], and its token becomes the connection's.
    pub const fn adopting() -> Self {
        Self { token: None }
    }

    /// The connection's token, once it is known.
    pub const fn token(&self) -> Option<Token> {
        self.token
    }

    /// Takes the next whole frame out of `input`, or nothing when it is not there yet.
    ///
    /// # Errors
    /// After an error the connection is unusable: what follows in `input` has no meaning.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let Some((head, _)) = input.split_first_chunk::<HEAD_LEN>() else {
            return Ok(None);
        };
        let mut fields = &head[..];
        let kind_byte = fields.get_u8();
        let flags = fields.get_u8();
        let stream = fields.get_u32();
        let len = fields.get_u32() as usize;
        let kind = Kind::from_wire(kind_byte).ok_or(Error::UnknownKind { kind: kind_byte })?;
        match &self.token {
            Some(token) if !token.matches(fields) => return Err(Error::Forged),
            None if kind != Kind::Hello => return Err(Error::NoHello),
            _ => {}
        }
        if len > PAYLOAD_MAX {
            return Err(Error::TooLong { len });
        }
        if self.token.is_none() {
            let mut bytes = [0; TOKEN_LEN];
            fields.copy_to_slice(&mut bytes);
            self.token = Some(Token(bytes));
        }
        if input.len() < HEAD_LEN + len {
            input.reserve(HEAD_LEN + len - input.len());
            return Ok(None);
        }
        input.advance(HEAD_LEN);
        let payload = input.split_to(len).freeze();
        Ok(Some(Frame {
            kind,
            flags,
            stream,
            payload,
        }))
    }
}

/// Why bytes are not a frame of this connection, or a frame has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The token is another one: somebody else wrote it.
    #[error("a frame without the connection's secret")]
    Forged,
    /// The first frame was something else.
    #[error("the first frame is not a hello")]
    NoHello,
    /// A kind that this version does not know.
    #[error("a frame of unknown kind {kind:#04x}")]
    UnknownKind {
        /// The byte.
        kind: u8,
    },
    /// A kind that only the other end may send.
    #[error("a {kind:?} frame from the wrong end")]
    WrongEnd {
        /// What it was.
        kind: Kind,
    },
    /// Too many bytes of payload.
    #[error("a frame of {len} bytes")]
    TooLong {
        /// How many.
        len: usize,
    },
    /// The payload is not what the kind says.
    #[error("a {kind:?} frame that cannot be read: {reason}")]
    Malformed {
        /// What it was.
        kind: Kind,
        /// What is wrong with it.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;
    use proptest::prelude::*;

    use super::*;

    const SECRET: Token = Token::new([7; TOKEN_LEN]);

    fn any_frame() -> impl Strategy<Value = Frame> {
        (
            proptest::sample::select(Kind::ALL.to_vec()),
            any::<u8>(),
            any::<u32>(),
            proptest::collection::vec(any::<u8>(), 0..600),
        )
            .prop_map(|(kind, flags, stream, payload)| Frame {
                kind,
                flags,
                stream,
                payload: payload.into(),
            })
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_bytes_arrive(
            frames in proptest::collection::vec(any_frame(), 0..8),
            step in 1_usize..97,
        ) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&SECRET, &mut wire).unwrap();
            }
            let (mut decoder, mut input, mut seen) = (Decoder::expecting(SECRET), BytesMut::new(), Vec::new());
            for part in wire.chunks(step) {
                input.extend_from_slice(part);
                while let Some(frame) = decoder.decode(&mut input).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_other_secret_is_refused(frame in any_frame(), token in any::<[u8; TOKEN_LEN]>()) {
            prop_assume!(token != SECRET.0);
            let mut wire = BytesMut::new();
            frame.encode(&Token::new(token), &mut wire).unwrap();
            prop_assert_eq!(Decoder::expecting(SECRET).decode(&mut wire), Err(Error::Forged));
        }

        #[test]
        fn rubbish_never_panics_and_never_grows_without_bound(rubbish in proptest::collection::vec(any::<u8>(), 0..300)) {
            for mut decoder in [Decoder::expecting(SECRET), Decoder::adopting()] {
                let mut input = BytesMut::from(&rubbish[..]);
                while let Ok(Some(_)) = decoder.decode(&mut input) {}
                prop_assert!(input.capacity() <= HEAD_LEN + PAYLOAD_MAX + rubbish.len());
            }
        }
    }

    #[test]
    fn init_adopts_the_token_of_the_hello_and_keeps_it() {
        let mut wire = BytesMut::new();
        Frame::new(Kind::Hello, 0, "{}").encode(&SECRET, &mut wire).unwrap();
        Frame::new(Kind::Ping, 0, "12345678")
            .encode(&Token::new([8; TOKEN_LEN]), &mut wire)
            .unwrap();
        let mut decoder = Decoder::adopting();
        assert_matches!(decoder.decode(&mut wire), Ok(Some(Frame { kind: Kind::Hello, .. })));
        assert_eq!(decoder.decode(&mut wire), Err(Error::Forged));
    }

    #[test]
    fn a_connection_begins_with_a_hello() {
        let mut wire = BytesMut::new();
        Frame::new(Kind::Ping, 0, "").encode(&SECRET, &mut wire).unwrap();
        assert_eq!(Decoder::adopting().decode(&mut wire), Err(Error::NoHello));
    }

    #[test]
    fn a_frame_over_the_limit_is_neither_written_nor_read() {
        let mut wire = BytesMut::new();
        let frame = Frame::new(Kind::Stdout, 1, vec![0; PAYLOAD_MAX + 1]);
        assert_matches!(frame.encode(&SECRET, &mut wire), Err(Error::TooLong { .. }));
        assert!(wire.is_empty());

        Frame::new(Kind::Stdout, 1, vec![0; PAYLOAD_MAX])
            .encode(&SECRET, &mut wire)
            .unwrap();
        wire[6..10].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_matches!(Decoder::expecting(SECRET).decode(&mut wire), Err(Error::TooLong { .. }));
    }
}
