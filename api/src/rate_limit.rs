//! How often a tenant may call: so many requests a second, counted in this process.
//!
//! Headers as in the IETF's draft "`RateLimit` header fields for HTTP", revision 10.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use common::ids::TenantId;
use common::store::tenants::Tenant;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::problem::{Code, Problem};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// The limits of all tenants that called.
#[derive(Debug)]
pub(crate) struct RateLimits {
    rate: u32,
    tenants: RwLock<HashMap<TenantId, Arc<Limit>>>,
    clock: DefaultClock,
}

#[derive(Debug)]
struct Limit {
    rate: u32,
    policy: HeaderValue,
    limiter: Limiter,
}

/// What is left of a limit after a request that was let through.
#[derive(Debug)]
pub(crate) struct Allowance {
    limit: Arc<Limit>,
    remaining: u32,
}

impl RateLimits {
    /// Limits of `rate` requests a second for tenants without a rate of their own.
    pub(crate) fn new(rate: u32) -> Self {
        Self {
            rate,
            tenants: RwLock::new(HashMap::new()),
            clock: DefaultClock::default(),
        }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// The answer to one that is too many.
    pub(crate) fn check(&self, tenant: &Tenant) -> Result<Allowance, Box<Response>> {
        let limit = self.limit(tenant);
        match limit.limiter.check() {
            Ok(state) => Ok(Allowance {
                remaining: state.remaining_burst_capacity(),
                limit,
            }),
            Err(refused) => {
                let wait = refused.wait_time_from(self.clock.now());
                let detail = format!("the limit is {} requests a second", limit.rate);
                let mut response = Problem::new(Code::RateLimited, detail)
                    .with_retry_after(wait)
                    .into_response();
                Allowance { limit, remaining: 0 }.write(response.headers_mut());
                Err(Box::new(response))
            }
        }
    }

    fn limit(&self, tenant: &Tenant) -> Arc<Limit> {
        let rate = tenant.rate.unwrap_or(self.rate).max(1);
        let known = self
            .tenants
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&tenant.id)
            .cloned();
        if let Some(limit) = known.filter(|limit| limit.rate == rate) {
            return limit;
        }
        let quota = Quota::per_second(NonZeroU32::new(rate).unwrap_or(NonZeroU32::MIN));
        let policy = format!("\"tenant\";q={rate};w=1");
        let limit = Arc::new(Limit {
            rate,
            policy: HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("\"tenant\"")),
            limiter: RateLimiter::direct(quota).with_middleware(),
        });
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants.insert(tenant.id, Arc::clone(&limit));
        limit
    }
}

impl Allowance {
    /// Says in an answer what the limit is and what is left of it.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(POLICY, self.limit.policy.clone());
        if let Ok(value) = HeaderValue::from_str(&format!("\"tenant\";r={};t=1", self.remaining)) {
            headers.insert(LIMIT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn tenant(rate: Option<u32>) -> Tenant {
        Tenant {
            id: TenantId::new(),
            name: "t".to_owned(),
            weight: 1,
            priority_max: 9,
            max_running: None,
            rate,
            run_rate: None,
            paused_at: None,
            created_at: chrono::DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn one_tenants_flood_is_its_own_affair() {
        let limits = RateLimits::new(1_000);
        let (slow, fast) = (tenant(Some(2)), tenant(None));
        assert_eq!(limits.check(&slow).unwrap().remaining, 1);
        assert_eq!(limits.check(&slow).unwrap().remaining, 0);
        let refused = limits.check(&slow).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(refused.headers()["ratelimit-policy"], "\"tenant\";q=2;w=1");
        assert_eq!(refused.headers()["ratelimit"], "\"tenant\";r=0;t=1");
        assert_eq!(limits.check(&fast).unwrap().remaining, 999);
    }
}
