//! `hothouse-worker`: the worker as a process of its own.
fn main() {}
