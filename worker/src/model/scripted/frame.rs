//! What a server sends after its head, step by step.

use std::time::Duration;

use common::message::Usage;

/// One step of a server's answer after its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Sends this, whole.
    Event(String),
    /// Waits.
    Wait(Duration),
    /// Breaks the connection.
    Cut,
    /// Falls silent for ever.
    Stall,
    /// Sends nothing: the client has been told these totals by now, and they count.
    Told(Usage),
}
