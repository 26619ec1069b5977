//! The policy that all calls share, whoever makes them.

/// Whose limits and pauses calls share: a provider's server with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The provider and a part of a hash of address and key: tells accounts apart and gives nothing away.
    pub name: String,
    /// Calls at once, of all workers together; 0 is no limit.
    pub calls_max: u32,
    /// Tokens a minute, of all workers together; 0 is no limit.
    pub tokens_per_minute: u64,
}
