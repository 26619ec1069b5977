//! Stream tokens: a browser's `EventSource` cannot send headers, so one job's stream can be opened with a token.
//!
//! A token is `hhs_` and base64url of key id, tenant id and job id (16 bytes each), end (8, s since 1970) and
//! HMAC-SHA-256 (32). It is
//! signed with the stored hash of the key that asked for it: every replica can check it, nothing is stored, and revoking
//! the key revokes its tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use common::ids::{ApiKeyId, JobId, TenantId};
use common::store::keys::ApiKey;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

use super::{Caller, unauthenticated};
use crate::problem::Problem;
use crate::state::App;

const PREFIX: &str = "hhs_";
const CLAIMS: usize = 16 + 16 + 16 + 8;
const MAC: usize = 32;

/// The right to follow one job for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamToken {
    /// The key that asked for it.
    pub key_id: ApiKeyId,
    /// Whose job it is: an admin's key may have acted for another tenant.
    pub tenant_id: TenantId,
    /// The job.
    pub job_id: JobId,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

impl StreamToken {
    /// The longest that a token may be good for.
    pub const TTL_MAX: TimeDelta = TimeDelta::minutes(60);

    fn claims(&self) -> Vec<u8> {
        let mut claims = Vec::with_capacity(CLAIMS + MAC);
        claims.extend_from_slice(self.key_id.uuid().as_bytes());
        claims.extend_from_slice(self.tenant_id.uuid().as_bytes());
        claims.extend_from_slice(self.job_id.uuid().as_bytes());
        claims.extend_from_slice(&self.expires_at.timestamp().to_be_bytes());
        claims
    }

    fn read(claims: &[u8]) -> Option<Self> {
        let id = |range| Uuid::from_slice(claims.get(range)?).ok();
        let end = i64::from_be_bytes(claims.get(48..CLAIMS)?.try_into().ok()?);
        Some(Self {
            key_id: id(0..16)?.into(),
            tenant_id: id(16..32)?.into(),
            job_id: id(32..48)?.into(),
            expires_at: DateTime::from_timestamp(end, 0)?,
        })
    }

    /// Signs it with the key that asked for it.
    pub fn sign(&self, key: &ApiKey) -> String {
        let mut bytes = self.claims();
        let mac = mac(key, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The caller whom a token stands for.
    ///
    /// # Errors
    /// 401 when it is garbage, forged, over or revoked; 503 when Postgres is away.
    pub(super) async fn verify(app: &App, text: &str) -> Result<Caller, Problem> {
        let (token, bytes) = decode(text).ok_or_else(unauthenticated)?;
        let known = app.keyring().by_id(app.store(), token.key_id).await?;
        let (key, _) = known.ok_or_else(unauthenticated)?;
        if !is_signed(&key, &bytes) || token.expires_at <= app.clock().now() {
            return Err(unauthenticated());
        }
        let tenant = app
            .keyring()
            .tenant(app.store(), token.tenant_id)
            .await?
            .ok_or_else(unauthenticated)?;
        Ok(Caller {
            tenant,
            key_id: key.id,
            role: key.role,
            only_job: Some(token.job_id),
        })
    }
}

fn decode(text: &str) -> Option<(StreamToken, Vec<u8>)> {
    let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
    if bytes.len() != CLAIMS + MAC {
        return None;
    }
    Some((StreamToken::read(bytes.get(..CLAIMS)?)?, bytes))
}

/// Compares in constant time.
fn is_signed(key: &ApiKey, bytes: &[u8]) -> bool {
    bytes
        .split_at_checked(CLAIMS)
        .is_some_and(|(claims, tag)| mac(key, claims).verify_slice(tag).is_ok())
}

fn mac(key: &ApiKey, claims: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.hash).expect("HMAC takes keys of every length");
    mac.update(b"hothouse stream token\0");
    mac.update(claims);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::NewKey;
    use common::store::keys::Role;

    fn key() -> ApiKey {
        NewKey::generate(TenantId::new(), Role::Member, "", DateTime::UNIX_EPOCH).key
    }

    #[test]
    fn a_token_is_good_for_its_key_alone_and_not_when_changed() {
        let (key, other) = (key(), key());
        let token = StreamToken {
            key_id: key.id,
            tenant_id: key.tenant_id,
            job_id: JobId::new(),
            expires_at: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
        };
        let (read, mut bytes) = decode(&token.sign(&key)).unwrap();
        assert_eq!(read, token);
        assert!(is_signed(&key, &bytes) && !is_signed(&other, &bytes));
        for index in 0..bytes.len() {
            bytes[index] ^= 1;
            assert!(!is_signed(&key, &bytes), "byte {index}");
            bytes[index] ^= 1;
        }
        assert!(decode("hhs_").is_none() && decode("").is_none());
    }
}
