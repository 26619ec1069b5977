//! The worker against real sandboxes: every driver, its conformance, the pool.

mod docker;

mod model_anthropic;
mod model_server;
mod model_turn;
