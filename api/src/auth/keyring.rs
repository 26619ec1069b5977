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
use tokio::time::timeout;

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
    ids: Cache<ApiKeyId, Known>,
    tenants: Cache<TenantId, Arc<Tenant>>,
}

impl Keyring {
    /// A keyring that believes what it knows for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Self {
            secrets: Cache::new(ttl),
            unknown: Cache::new(ttl),
            ids: Cache::new(ttl),
            tenants: Cache::new(ttl),
        }
    }

    /// The key that a caller showed; `None` when it is unknown or revoked.
    ///
    /// # Errors
    /// When it must be looked up and Postgres is away.
    pub async fn by_secret(&self, store: &Store, secret: &str) -> Result<Option<Known>, Error> {
        let hash = hash(secret);
        let look_up = async || {
            let asked = (Instant::now(), self.unknown.generation());
            if self.unknown.believed(&hash, asked.0).is_some() {
                return Ok(None);
            }
            let found = store.valid_key(KeyRef::Hash(hash)).await?.map(shared);
            if found.is_none() {
                self.unknown.remember(hash, (), asked);
            }
            Ok(found)
        };
        self.secrets.get_or(hash, look_up).await
    }

    /// A key by its id; `None` when it is unknown or revoked.
    ///
    /// # Errors
    /// As [`Self::by_secret`].
    pub async fn by_id(&self, store: &Store, id: ApiKeyId) -> Result<Option<Known>, Error> {
        let look_up = async || Ok(store.valid_key(KeyRef::Id(id)).await?.map(shared));
        self.ids.get_or(id, look_up).await
    }

    /// A tenant.
    ///
    /// # Errors
    /// As [`Self::by_secret`].
    pub async fn tenant(&self, store: &Store, id: TenantId) -> Result<Option<Arc<Tenant>>, Error> {
        let look_up = async || Ok(store.tenant(id).await?.map(Arc::new));
        self.tenants.get_or(id, look_up).await
    }

    /// Forgets everything, because a key or a tenant was changed through this process.
    pub fn clear(&self) {
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
///
/// Half of its time before an entry is forgotten one caller asks for it anew, while the others believe it still. Where all
/// found it gone at once, each of them would ask, and a busy tenant's calls would stand still every few seconds.
#[derive(Debug)]
struct Cache<K, V> {
    ttl: Duration,
    entries: RwLock<HashMap<K, Entry<V>>>,
    /// How often everything was forgotten. What was asked for before that is not remembered.
    generation: AtomicU64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    since: Instant,
    asked_at: Instant,
}

/// What a caller finds.
#[derive(Debug, PartialEq, Eq)]
enum Found<V> {
    /// Something to believe.
    Fresh(V),
    /// The same, and this caller is the one who asks anew.
    Ageing(V),
}

impl<K: Hash + Eq + Copy, V: Clone> Cache<K, V> {
    /// Entries after which the old ones are thrown out, and all of them where none is old.
    const MANY: usize = 10_000;

    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            entries: RwLock::new(HashMap::new()),
            generation: AtomicU64::new(0),
        }
    }

    /// What is known, or what `look_up` answers. Where that fails, what is known is believed to the end of its time, and nobody
    /// who knows something waits longer for it than until the next caller asks.
    async fn get_or(
        &self,
        key: K,
        look_up: impl AsyncFnOnce() -> Result<Option<V>, Error>,
    ) -> Result<Option<V>, Error> {
        let (asked_at, generation) = (Instant::now(), self.generation());
        let found = self.get(&key, asked_at);
        let is_known = found.is_some();
        let answer = match found {
            Some(Found::Fresh(value)) => return Ok(Some(value)),
            Some(Found::Ageing(_)) => match timeout(self.ttl / 4, look_up()).await {
                Ok(answer) => answer,
                Err(elapsed) => Err(elapsed.into()),
            },
            None => look_up().await,
        };
        match answer {
            Ok(Some(value)) => {
                self.remember(key, value.clone(), (asked_at, generation));
                Ok(Some(value))
            }
            Ok(None) => {
                // What nobody knew needs no lock: strangers may ask as often as they like.
                if is_known {
                    self.forget(&key);
                }
                Ok(None)
            }
            Err(error) => {
                let believed = self.believed(&key, Instant::now()).ok_or(error)?;
                tracing::debug!("what is known is believed still: nobody could be asked");
                Ok(Some(believed))
            }
        }
    }

    /// What is known, however soon it will be forgotten.
    fn believed(&self, key: &K, now: Instant) -> Option<V> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(key)?;
        (now.saturating_duration_since(entry.since) < self.ttl).then(|| entry.value.clone())
    }

    fn get(&self, key: &K, now: Instant) -> Option<Found<V>> {
        let age = |since: Instant| now.saturating_duration_since(since);
        let is_asked_for = |entry: &Entry<V>| age(entry.since) < self.ttl / 2 || age(entry.asked_at) < self.ttl / 4;
        {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            let entry = entries.get(key).filter(|entry| age(entry.since) < self.ttl)?;
            if is_asked_for(entry) {
                return Some(Found::Fresh(entry.value.clone()));
            }
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_mut(key)?;
        if is_asked_for(entry) {
            return Some(Found::Fresh(entry.value.clone()));
        }
        entry.asked_at = now;
        Some(Found::Ageing(entry.value.clone()))
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Remembers what was asked for then, in that generation.
    fn remember(&self, key: K, value: V, (asked_at, generation): (Instant, u64)) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if self.generation() != generation {
            return;
        }
        if entries.len() >= Self::MANY {
            entries.retain(|_, entry| entry.since.elapsed() < self.ttl);
        }
        if entries.len() >= Self::MANY {
            entries.clear();
        }
        let entry = Entry {
            value,
            // What changed while it was asked for counts as not seen.
            since: asked_at,
            asked_at,
        };
        entries.insert(key, entry);
    }

    fn forget(&self, key: &K) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn clear(&self) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::AcqRel);
        entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(8);

    /// A failure that says nothing about what was asked for.
    fn away() -> Error {
        Error::Unavailable(sqlx::Error::PoolTimedOut)
    }

    #[test]
    fn what_is_known_is_forgotten_in_time() {
        let cache = Cache::new(TTL);
        cache.remember(1, "one", (Instant::now(), 0));
        let now = Instant::now();
        assert_eq!(cache.get(&1, now + TTL / 4), Some(Found::Fresh("one")));
        assert_eq!(cache.get(&1, now + TTL), None);
        cache.clear();
        assert_eq!(cache.get(&1, now), None);
    }

    #[test]
    fn one_caller_at_a_time_asks_for_what_ages() {
        let cache = Cache::new(TTL);
        cache.remember(1, "one", (Instant::now(), 0));
        let half = Instant::now() + TTL / 2;
        assert_eq!(cache.get(&1, half), Some(Found::Ageing("one")));
        assert_eq!(cache.get(&1, half), Some(Found::Fresh("one")));
        // Whoever asked has gone without an answer.
        assert_eq!(cache.get(&1, half + TTL / 4), Some(Found::Ageing("one")));
        assert_eq!(cache.get(&1, half + TTL / 4), Some(Found::Fresh("one")));
    }

    #[tokio::test]
    async fn what_ages_is_believed_while_nobody_can_be_asked() {
        let cache = Cache::new(TTL);
        assert!(cache.get_or(1, async || Err(away())).await.is_err());
        let answered = cache.get_or(1, async || Ok(Some("one"))).await;
        assert_eq!(answered.unwrap(), Some("one"));
        let age = |by| {
            for entry in cache.entries.write().unwrap().values_mut() {
                entry.since -= by;
                entry.asked_at -= by;
            }
        };

        age(TTL / 2);
        assert_eq!(cache.get_or(1, async || Err(away())).await.unwrap(), Some("one"));
        age(TTL / 4);
        // Until it should be forgotten, and not a moment longer: while it was asked for, that time came, or somebody had all forgotten.
        let late = async || {
            age(TTL / 2);
            Err(away())
        };
        let recent = async || cache.get_or(1, async || Ok(Some("one"))).await.unwrap();
        assert!(cache.get_or(1, late).await.is_err());
        recent().await;
        age(TTL / 2);
        let cleared = async || {
            cache.clear();
            Err(away())
        };
        assert!(cache.get_or(1, cleared).await.is_err());

        recent().await;
        age(TTL * 3 / 4);
        // It is gone, as this caller is told first.
        assert_eq!(cache.get_or(1, async || Ok(None)).await.unwrap(), None);
        assert_eq!(cache.get(&1, Instant::now()), None);
    }

    #[tokio::test]
    async fn what_was_asked_for_before_all_was_forgotten_is_not_remembered() {
        let cache = Cache::new(TTL);
        let look_up = async || {
            cache.clear();
            Ok(Some("before"))
        };
        assert_eq!(cache.get_or(1, look_up).await.unwrap(), Some("before"));
        assert_eq!(cache.get(&1, Instant::now()), None);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let cache = Cache::new(Duration::from_hours(1));
        for key in 0..=Cache::<usize, ()>::MANY {
            cache.remember(key, (), (Instant::now(), 0));
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
