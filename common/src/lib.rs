//! Domain types, queue, store, configuration and lifecycle.

pub mod message;
