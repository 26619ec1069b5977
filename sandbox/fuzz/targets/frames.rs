//! Whatever bytes come, in whatever pieces: neither end's reader panics or holds more than a frame, a frame that is
//! understood is written again as the same one, and nothing without the secret is.

#![no_main]

use bytes::{Bytes, BytesMut};
use hothouse_protocol::{Decoder, Error, Frame, FromInit, HEAD_LEN, PAYLOAD_MAX, ToInit, Token};
use libfuzzer_sys::fuzz_target;

const SECRET: [u8; 16] = *b"0123456789abcdef";
const SECRET_AT: usize = HEAD_LEN - SECRET.len();

fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    // Else the fuzzer would do nothing but guess the secret; its first frame at least is heard.
    if how & 1 == 1 && bytes.len() >= HEAD_LEN {
        bytes[SECRET_AT..HEAD_LEN].copy_from_slice(&SECRET);
    }
    let step = usize::from(how >> 2).max(1);
    read(Decoder::expecting(Token::new(SECRET)), &bytes, step, how & 2 == 2);
    read(Decoder::adopting(), &bytes, step, how & 2 == 2);
});

fn read(mut decoder: Decoder, bytes: &[u8], step: usize, has_secrets: bool) {
    let mut input = BytesMut::new();
    for piece in bytes.chunks(step) {
        input.extend_from_slice(piece);
        loop {
            if has_secrets && input.len() >= HEAD_LEN && decoder.token().is_some() {
                input[SECRET_AT..HEAD_LEN].copy_from_slice(&SECRET);
            }
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => meaning(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(input.capacity() <= 2 * (HEAD_LEN + PAYLOAD_MAX) + bytes.len());
    }
}

fn meaning(frame: &Frame) {
    if let Ok(message) = ToInit::try_from(frame.clone()) {
        same(&message, |message| Frame::from(message.clone()), ToInit::try_from);
    }
    if let Ok(message) = FromInit::try_from(frame.clone()) {
        same(&message, |message| Frame::from(message.clone()), FromInit::try_from);
    }
}

/// A message means the same after it was written and read, and with another secret it means nothing.
fn same<M: PartialEq + std::fmt::Debug>(
    message: &M,
    write: impl Fn(&M) -> Frame,
    read: impl Fn(Frame) -> Result<M, Error>,
) {
    let token = Token::new(SECRET);
    let mut wire = BytesMut::new();
    // JSON that was read may be longer when it is written.
    if write(message).encode(&token, &mut wire).is_err() {
        return;
    }
    let mut forged = wire.clone();
    forged[SECRET_AT] ^= 1;
    assert_eq!(Decoder::expecting(token).decode(&mut forged), Err(Error::Forged));
    let frame = Decoder::expecting(token)
        .decode(&mut wire)
        .expect("it was written just now")
        .expect("whole");
    assert_eq!(frame.payload, Bytes::copy_from_slice(&frame.payload));
    assert_eq!(&read(frame).expect("it was read before"), message);
}
