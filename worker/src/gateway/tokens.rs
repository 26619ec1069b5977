//! The tokens that a gateway accepts: its attempt's own, and that of a process which was started before the attempt.
//!
//! # Invariants
//! - A token that was given up without a call is good for none afterwards, not even for a request that was under way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::header::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

use super::answer::Refusal;

/// See the module.
pub(super) struct Tokens {
    own: String,
    bound: Mutex<Option<Bound>>,
}

struct Bound {
    token: String,
    has_called: bool,
}

/// Whose token a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bearer {
    /// The attempt's own.
    Own,
    /// That of the process which was started before.
    Bound,
}

impl Tokens {
    pub(super) fn new(own: String) -> Self {
        Self {
            own,
            bound: Mutex::default(),
        }
    }

    /// The attempt's own.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// See [`super::Gateway::bind`].
    pub(super) fn bind(&self, token: &str) {
        *self.bound() = Some(Bound {
            token: token.to_owned(),
            has_called: false,
        });
    }

    /// See [`super::Gateway::unbind`].
    pub(super) fn unbind(&self) -> bool {
        let mut bound = self.bound();
        *bound = bound.take().filter(|bound| bound.has_called);
        bound.is_none()
    }

    /// Whose token these headers have.
    ///
    /// # Errors
    /// When it is none of ours.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Bearer, Refusal> {
        let bearer = headers
            .get("authorization")
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let key = headers.get("x-api-key").map(HeaderValue::as_bytes);
        let bound = self.bound();
        let ours = [
            Some((&self.own, Bearer::Own)),
            bound.as_ref().map(|bound| (&bound.token, Bearer::Bound)),
        ];
        let whose = |given: &[u8]| {
            let mut ours = ours.iter().flatten();
            ours.find(|(token, _)| bool::from(given.ct_eq(token.as_bytes())))
        };
        let found = key.into_iter().chain(bearer).find_map(whose);
        found.map(|(_, whose)| *whose).ok_or_else(unknown)
    }

    /// A model is about to be called for whom [`Self::check`] let in.
    ///
    /// # Errors
    /// When its token was given up meanwhile.
    pub(super) fn calls(&self, bearer: Bearer) -> Result<(), Refusal> {
        match (bearer, &mut *self.bound()) {
            (Bearer::Own, _) => Ok(()),
            (Bearer::Bound, Some(bound)) => {
                bound.has_called = true;
                Ok(())
            }
            (Bearer::Bound, None) => Err(unknown()),
        }
    }

    fn bound(&self) -> MutexGuard<'_, Option<Bound>> {
        // Every change under the lock is whole.
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown() -> Refusal {
    Refusal::new(
        401,
        "authentication_error",
        "this is not the token of the attempt that runs here",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(token: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("x-api-key".parse().unwrap(), HeaderValue::from_static(token))])
    }

    #[test]
    fn a_request_that_was_let_in_does_not_outlive_its_token() {
        let tokens = Tokens::new("own".to_owned());
        assert!(tokens.check(&with("before")).is_err());
        tokens.bind("before");
        let bearer = tokens.check(&with("before")).unwrap();
        assert_eq!(bearer, Bearer::Bound);
        assert!(tokens.unbind());
        assert!(tokens.calls(bearer).is_err() && tokens.check(&with("before")).is_err());
        assert!(tokens.calls(tokens.check(&with("own")).unwrap()).is_ok());
    }

    #[test]
    fn a_token_that_called_a_model_stays() {
        let tokens = Tokens::new("own".to_owned());
        tokens.bind("before");
        let bearer = tokens.check(&with("before")).unwrap();
        tokens.calls(bearer).unwrap();
        assert!(!tokens.unbind());
        assert!(tokens.check(&with("before")).is_ok() && tokens.calls(bearer).is_ok());
    }
}
