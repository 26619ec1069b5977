//! The stores behind the API, for what only they can tell.

use anyhow::Context as _;
use common::queue::Queue;
use common::store::Store;

/// Opens Postgres as the processes do: by `HOTHOUSE_DATABASE__URL`.
///
/// # Errors
/// When that is not set.
pub(super) fn postgres() -> anyhow::Result<Store> {
    Store::open(&config()?.database).context("set HOTHOUSE_DATABASE__URL as the server's processes have it")
}

/// Opens Redis as the processes do: by `HOTHOUSE_REDIS__URL`.
///
/// # Errors
/// When that is not set.
pub(super) fn redis() -> anyhow::Result<Queue> {
    let config = config()?;
    Queue::open(&config.redis, &config.leases).context("set HOTHOUSE_REDIS__URL as the server's processes have it")
}

fn config() -> anyhow::Result<scheduler::Config> {
    Ok(common::config::load(None, common::config::environment())?)
}
