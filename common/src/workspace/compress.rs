//! zstd a piece at a time, in bounded memory both ways: what a few bytes expand to is handed on before more is made.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation, OutBuffer};

/// The most that one step makes, bytes.
const STEP: usize = 64 * 1024;

/// Fast: a workspace is saved after every turn, and text shrinks to a third all the same.
const LEVEL: i32 = 1;

/// Compresses what it is given.
pub(super) struct Compressor(Encoder<'static>);

impl Compressor {
    pub(super) fn new() -> io::Result<Self> {
        Encoder::new(LEVEL).map(Self)
    }

    /// Takes all of `piece`; appends what has become ready to `out`.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut BytesMut) -> io::Result<()> {
        let mut input = InBuffer::around(piece);
        while input.pos() < piece.len() {
            step(out, |output| self.0.run(&mut input, output).map(drop))?;
        }
        Ok(())
    }

    /// Appends the rest.
    pub(super) fn finish(&mut self, out: &mut BytesMut) -> io::Result<()> {
        let mut left = 1;
        while left > 0 {
            step(out, |output| {
                left = self.0.finish(output, true)?;
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn step(out: &mut BytesMut, run: impl FnOnce(&mut OutBuffer<'_, [u8]>) -> io::Result<()>) -> io::Result<usize> {
    let begin = out.len();
    out.resize(begin + STEP, 0);
    let (_, room) = out.split_at_mut(begin);
    let mut output = OutBuffer::around(room);
    let done = run(&mut output);
    let made = output.pos();
    out.truncate(begin + made);
    done.map(|()| made)
}

/// A compressed stream.
struct Expanding<S> {
    source: S,
    decoder: Decoder<'static>,
    input: Bytes,
    /// Whether the frame has not ended.
    is_open: bool,
    /// Whether the decoder had no room for all that it holds.
    has_more: bool,
}

/// What a compressed stream holds.
pub(super) fn expanded<S>(source: S) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = io::Result<Bytes>> + Send,
{
    let begun = async move {
        let decoder = Decoder::new()?;
        Ok::<_, io::Error>(Expanding {
            source: Box::pin(source),
            decoder,
            input: Bytes::new(),
            is_open: true,
            has_more: false,
        })
    };
    futures_util::stream::once(begun).flat_map(|begun| match begun {
        Ok(state) => futures_util::stream::try_unfold(state, next).left_stream(),
        Err(error) => futures_util::stream::once(async { Err(error) }).right_stream(),
    })
}

async fn next<S>(mut state: Expanding<S>) -> io::Result<Option<(Bytes, Expanding<S>)>>
where
    S: Stream<Item = io::Result<Bytes>> + Unpin,
{
    loop {
        if state.input.is_empty() && !state.has_more {
            match state.source.next().await {
                Some(piece) => state.input = piece?,
                None if state.is_open => return Err(io::ErrorKind::UnexpectedEof.into()),
                None => return Ok(None),
            }
        }
        let mut out = BytesMut::new();
        let mut input = InBuffer::around(&state.input[..]);
        let made = step(&mut out, |output| {
            let hint = state.decoder.run(&mut input, output)?;
            state.is_open = hint != 0;
            Ok(())
        })?;
        let taken = input.pos();
        state.input.advance(taken);
        state.has_more = state.is_open && made == STEP;
        if made > 0 {
            return Ok(Some((out.freeze(), state)));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    fn compressed(pieces: &[&[u8]]) -> Bytes {
        let (mut compressor, mut out) = (Compressor::new().unwrap(), BytesMut::new());
        for piece in pieces {
            compressor.push(piece, &mut out).unwrap();
        }
        compressor.finish(&mut out).unwrap();
        out.freeze()
    }

    async fn expand(compressed: Bytes, piece: usize) -> io::Result<(Vec<u8>, usize)> {
        let pieces: Vec<io::Result<Bytes>> = compressed
            .chunks(piece)
            .map(|part| Ok(Bytes::copy_from_slice(part)))
            .collect();
        let pieces: Vec<Bytes> = expanded(futures_util::stream::iter(pieces)).try_collect().await?;
        let largest = pieces.iter().map(Bytes::len).max().unwrap_or(0);
        Ok((pieces.concat(), largest))
    }

    #[tokio::test]
    async fn what_is_compressed_comes_back_whatever_the_pieces() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let packed = compressed(&[&text[..7], &text[7..900_001], &text[900_001..]]);
        for piece in [1_000, 65_536, usize::MAX >> 1] {
            assert_eq!(expand(packed.clone(), piece).await.unwrap().0, text);
        }
        assert_eq!(expand(compressed(&[]), 3).await.unwrap().0, b"");
    }

    #[tokio::test]
    async fn a_few_bytes_that_expand_to_many_are_never_held_whole() {
        let packed = compressed(&[&vec![0; 64 << 20]]);
        assert!(packed.len() < 64 << 10, "{}", packed.len());
        let (all, largest) = expand(packed, usize::MAX >> 1).await.unwrap();
        assert_eq!(all.len(), 64 << 20);
        assert!(largest <= STEP);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_an_error() {
        let packed = compressed(&[&vec![7; 100_000]]);
        let error = expand(packed.slice(..packed.len() - 3), 50).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(expand(Bytes::from_static(b"no archive at all"), 50).await.is_err());
    }
}
