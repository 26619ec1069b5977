//! The worker: claims jobs, runs each one in a warm, sealed sandbox, and settles what came of it.

pub mod driver;
pub mod environment;
pub mod executor;
pub mod model;
pub mod pool;
pub mod sandbox;
