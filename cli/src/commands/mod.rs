//! One file a command.

pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod run;
pub(crate) mod up;
