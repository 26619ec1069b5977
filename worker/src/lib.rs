//! The worker: claims jobs, runs each one in a warm, sealed sandbox, and settles what came of it.

pub mod attempt;
pub mod claude;
pub mod config;
pub mod consumer;
pub mod driver;
pub mod egress;
pub mod environment;
pub mod events;
pub mod executor;
pub mod gateway;
mod lines;
mod machine;
pub mod model;
mod offer;
pub mod pool;
pub mod presence;
mod run;
pub mod sandbox;
pub mod settle;
pub mod verify;

pub use config::Config;
pub use machine::benches;
pub use run::run;
