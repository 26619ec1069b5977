//! Keys and tenants as Postgres last showed them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use common::config::Secret;
use common::ids::{ApiKeyId, TenantId};
use common::store::keys::{ApiKey, KeyRef, Role};
use common::store::tenants::Tenant;
use common::store::{Error, Store};
use rand::RngCore;
use sha2::{Digest, Sha256};

/// Characters of a key that are kept to tell keys apart.
const PREFIX_LENGTH: usize = 10;

/// A key and its tenant.
type Known = (Arc<ApiKey>, Arc<Tenant>);

/// Answers who a key is, mostly from memory.
#[derive(Debug)]
pub struct Keyring {
    secrets: Cache<[u8; 32], Known>,
    /// Secrets that were nobody's: whoever shows one again and again must not cost a query each time.
    unknown: Cache<[u8; 32], ()>,
    /// How often everything was forgotten.
    cleared: AtomicU64,
    ids: Cache<ApiKeyId, Known>,
    tenants: Cache<TenantId, Arc<Tenant>>,
}

impl Keyring {
    /// A keyring that believes what it knows for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self {
            secrets: Cache::new(ttl),
            unknown: Cache::new(ttl),
            cleared: AtomicU64::new(0),
            ids: Cache::new(ttl),
            tenants: Cache::new(ttl),
        }
    }

    /// The key that a caller showed; `None` when it is unknown or revoked.
    ///
    /// # Errors
    /// When it must be looked up and Postgres is away.
    pub async fn by_secret(&self, store: &Store, secret: &str) -> Result<Option<Known>, Error> {
        let (hash, now) = (hash(secret), Instant::now());
        if let Some(known) = self.secrets.get(&hash, now) {
            return Ok(Some(known));
        }
        if self.unknown.get(&hash, now).is_some() {
            return Ok(None);
        }
        let cleared = self.cleared.load(Ordering::Acquire);
        let found = store.valid_key(KeyRef::Hash(hash)).await?.map(shared);
        self.secrets.remember(hash, found.as_ref());
        // One that was made while it was looked up is not nobody's any more.
        if found.is_none() && self.cleared.load(Ordering::Acquire) == cleared {
            self.unknown.remember(hash, Some(&()));
        }
        Ok(found)
    }

    /// A key by its id; `None` when it is unknown or revoked.
    ///
    /// # Errors
    /// As [`Self::by_secret`].
    pub async fn by_id(&self, store: &Store, id: ApiKeyId) -> Result<Option<Known>, Error> {
        if let Some(known) = self.ids.get(&id, Instant::now()) {
            return Ok(Some(known));
        }
        let found = store.valid_key(KeyRef::Id(id)).await?.map(shared);
        self.ids.remember(id, found.as_ref());
        Ok(found)
    }

    /// A tenant.
    ///
    /// # Errors
    /// As [`Self::by_secret`].
    pub async fn tenant(&self, store: &Store, id: TenantId) -> Result<Option<Arc<Tenant>>, Error> {
        if let Some(known) = self.tenants.get(&id, Instant::now()) {
            return Ok(Some(known));
        }
        let found = store.tenant(id).await?.map(Arc::new);
        self.tenants.remember(id, found.as_ref());
        Ok(found)
    }

    /// Forgets everything, because a key or a tenant was changed through this process.
    pub fn clear(&self) {
        self.cleared.fetch_add(1, Ordering::AcqRel);
        self.secrets.clear();
        self.unknown.clear();
        self.ids.clear();
        self.tenants.clear();
    }
}

fn shared((key, tenant): (ApiKey, Tenant)) -> Known {
    (Arc::new(key), Arc::new(tenant))
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// A key that was just made.
#[derive(Debug)]
pub struct NewKey {
    /// What its holder must keep; it is shown once and stored nowhere.
    pub secret: Secret,
    /// What is stored.
    pub key: ApiKey,
}

impl NewKey {
    /// Makes a key from 256 random bits.
    pub fn generate(tenant_id: TenantId, role: Role, name: &str, now: DateTime<Utc>) -> Self {
        let mut bytes = [0_u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        let secret = format!("hh_{}", URL_SAFE_NO_PAD.encode(bytes));
        let key = stored(&secret, tenant_id, role, name, now);
        Self {
            secret: secret.into(),
            key,
        }
    }
}

/// What is stored of a key.
pub(super) fn stored(secret: &str, tenant_id: TenantId, role: Role, name: &str, now: DateTime<Utc>) -> ApiKey {
    ApiKey {
        id: ApiKeyId::new(),
        tenant_id,
        name: name.to_owned(),
        role,
        prefix: secret
            .chars()
            .take(PREFIX_LENGTH.min(secret.chars().count() / 2))
            .collect(),
        hash: hash(secret),
        created_at: now,
        revoked_at: None,
    }
}

/// What is known, each entry for a while.
#[derive(Debug)]
struct Cache<K, V> {
    ttl: Duration,
    entries: RwLock<HashMap<K, (V, Instant)>>,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    /// Entries after which the old ones are thrown out, and all of them where none is old.
    const MANY: usize = 10_000;

    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            entries: RwLock::new(HashMap::new()),
        }
    }

    fn get(&self, key: &K, now: Instant) -> Option<V> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .get(key)
            .filter(|(_, since)| now.saturating_duration_since(*since) < self.ttl)
            .map(|(value, _)| value.clone())
    }

    fn remember(&self, key: K, value: Option<&V>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= Self::MANY {
            entries.retain(|_, (_, since)| since.elapsed() < self.ttl);
        }
        if entries.len() >= Self::MANY {
            entries.clear();
        }
        match value {
            Some(value) => entries.insert(key, (value.clone(), Instant::now())),
            None => entries.remove(&key),
        };
    }

    fn clear(&self) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_forgotten_in_time() {
        let cache = Cache::new(Duration::from_secs(5));
        cache.remember(1, Some(&"one"));
        let now = Instant::now();
        assert_eq!(cache.get(&1, now + Duration::from_secs(4)), Some("one"));
        assert_eq!(cache.get(&1, now + Duration::from_secs(5)), None);
        cache.clear();
        assert_eq!(cache.get(&1, now), None);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let cache = Cache::new(Duration::from_hours(1));
        for key in 0..=Cache::<usize, ()>::MANY {
            cache.remember(key, Some(&()));
        }
        let now = Instant::now();
        assert!(cache.get(&0, now).is_none() && cache.get(&Cache::<usize, ()>::MANY, now).is_some());
    }

    #[test]
    fn a_key_is_long_and_its_prefix_is_not() {
        let made = NewKey::generate(TenantId::new(), Role::Member, "", DateTime::UNIX_EPOCH);
        assert_eq!(made.secret.expose().len(), 46);
        assert_eq!(made.key.prefix.len(), PREFIX_LENGTH);
        assert!(made.secret.expose().starts_with(&made.key.prefix));
        assert_eq!(made.key.hash, hash(made.secret.expose()));
    }
}
