//! The scripts: one file each, loaded once, run by their hash.

use redis::Script;

macro_rules! script {
    ($($part:literal),+) => {
        Script::new(concat!($(include_str!(concat!("lua/", $part, ".lua"))),+))
    };
}

/// All scripts. Each begins with `record.lua`, and with `gate.lua` and what it needs of the others where places change hands.
pub(super) struct Scripts {
    pub(super) dispatch: Script,
    pub(super) claim: Script,
    pub(super) heartbeat: Script,
    pub(super) register: Script,
    pub(super) ack: Script,
    pub(super) cancel: Script,
    pub(super) drop: Script,
    pub(super) expired: Script,
    pub(super) append: Script,
    pub(super) adopt: Script,
    pub(super) generation: Script,
    pub(super) open: Script,
    pub(super) stray: Script,
    pub(super) limit: Script,
    pub(super) why: Script,
    pub(super) admit: Script,
    pub(super) report: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            dispatch: script!("record", "gate", "served", "waiter", "back", "dispatch"),
            claim: script!(
                "record", "gate", "served", "waiter", "place", "lane", "sticky", "view", "turn", "release", "claim"
            ),
            heartbeat: script!("record", "heartbeat"),
            register: script!("record", "gate", "served", "waiter", "place", "back", "register"),
            ack: script!("record", "gate", "served", "waiter", "back", "ack"),
            cancel: script!("record", "gate", "served", "waiter", "back", "cancel"),
            drop: script!("record", "gate", "served", "waiter", "back", "drop"),
            expired: script!("record", "gate", "served", "waiter", "back", "expired"),
            append: script!("record", "append"),
            adopt: script!("record", "gate", "served", "waiter", "place", "back", "adopt"),
            generation: script!("record", "generation"),
            open: script!("record", "open"),
            stray: script!("record", "stray"),
            limit: script!("record", "gate", "served", "waiter", "limit"),
            why: script!("record", "gate", "why"),
            admit: script!("record", "admit"),
            report: script!("record", "report"),
        }
    }
}
