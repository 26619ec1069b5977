//! The Anthropic Messages wire: pure translation, no I/O.
//!
//! A stream is `message_start` (usage), then per block `content_block_start`, `content_block_delta`s and
//! `content_block_stop`, then `message_delta` (stop reason, cumulative usage) and `message_stop`; `ping` and `error` may
//! come anywhere, an error even after status 200. What is not known is passed over, so that a new field breaks nothing.

pub mod event;
pub mod request;
