//! The worker against real sandboxes: every driver, its conformance, the pool.

mod attempts;
mod bubblewrap_starts;
mod claims;
mod claude_code;
mod claude_spares;
mod conformance;
mod docker;
mod egress;
mod egress_server;
mod environments;
mod exec;
mod faults;
mod gateway;
mod hostile;
mod hostile_init;
mod hostile_worker;
mod install;
mod kill_cycles;
mod pool;
mod program;
mod reuse;
mod rollover;
mod sandbox_bubblewrap;
mod sandbox_link;
mod successors;
mod turns;
mod verify;
mod workspaces;

mod model_anthropic;
mod model_openai;
mod model_policy;
mod model_server;
mod model_turn;
