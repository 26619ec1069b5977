//! The OpenAI Chat Completions wire: pure translation, no I/O.
//!
//! A stream is a list of chunks, each with the next piece of `choices[0].delta`: text, or pieces of tool calls told apart
//! by their index. One chunk has the reason to stop; usage comes on the same or on a last one without choices; `[DONE]`
//! ends it. Servers differ in all of this, so whatever is left out or repeated is put up with where its meaning is clear.

pub mod event;
pub mod request;
