//! One file a command.

pub(crate) mod agents;
pub(crate) mod approvals;
pub(crate) mod bench;
pub(crate) mod budgets;
pub(crate) mod cancel;
pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod env;
pub(crate) mod jobs;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod many;
pub(crate) mod paused_keys;
pub(crate) mod queues;
pub(crate) mod run;
pub(crate) mod schedules;
pub(crate) mod scripted;
pub(crate) mod tenants;
pub(crate) mod up;
pub(crate) mod verify;
pub(crate) mod workers;
