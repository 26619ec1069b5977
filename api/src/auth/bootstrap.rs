//! The first key: without it nobody could make another.

use common::clock::Clock;
use common::config::Secret;
use common::store::keys::Role;
use common::store::{Error, Store};

use super::keyring::stored;

/// The tenant that the configured admin key belongs to.
const TENANT: &str = "default";

/// Makes sure that the tenant `default` exists, and that the configured key is an admin's.
///
/// # Errors
/// When Postgres is away; it may be repeated.
pub async fn ensure_admin_key(store: &Store, key: Option<&Secret>, clock: &Clock) -> Result<(), Error> {
    let tenant = store.ensure_tenant(TENANT, clock.now()).await?;
    if let Some(key) = key {
        let key = stored(
            key.expose(),
            tenant.id,
            Role::Admin,
            "configured admin key",
            clock.now(),
        );
        store.ensure_admin_key(&key).await?;
    }
    Ok(())
}
