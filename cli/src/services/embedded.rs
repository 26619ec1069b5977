//! The three parts of Hothouse inside this process.

use std::net::SocketAddr;
use std::path::PathBuf;

use common::lifecycle::Lifecycle;

use super::sandboxes::Sandboxes;

/// What the parts need to know of this machine; all else is their own configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) postgres_url: String,
    pub(crate) redis_url: String,
    pub(crate) admin_key: String,
    pub(crate) sandboxes: Sandboxes,
    /// The data folder.
    pub(crate) data: PathBuf,
}

/// Migrates, then starts API, worker and scheduler on the lifecycle.
///
/// # Errors
/// When the configuration or a migration is wrong.
pub(crate) async fn start(settings: Settings, _lifecycle: &Lifecycle) -> anyhow::Result<()> {
    let Settings {
        listen,
        postgres_url,
        redis_url,
        admin_key,
        sandboxes,
        data,
    } = settings;
    let _ = (listen, postgres_url, redis_url, admin_key, sandboxes, data);
    anyhow::bail!("the parts are not built yet")
}
