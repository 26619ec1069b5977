//! Usage: the tokens of a model call, in one shape for all providers.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Tokens of one model call, or of several added up.
///
/// Totals and parts of totals: `input_tokens` includes what was read from and written to the provider's cache,
/// `output_tokens` includes reasoning. So two providers that count differently on the wire are the same here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// All tokens of the request.
    pub input_tokens: u64,
    /// Those of them that were read from the provider's cache.
    pub cached_input_tokens: u64,
    /// Those of them that were written to its short-lived cache (minutes).
    pub cache_write_short_tokens: u64,
    /// Those of them that were written to its long-lived cache (an hour).
    pub cache_write_long_tokens: u64,
    /// All tokens of the answer.
    pub output_tokens: u64,
    /// Those of them that were reasoning, where the provider says so.
    pub reasoning_tokens: u64,
    /// True when a number is our estimate, because the answer was cut before the provider reported it.
    pub estimated: bool,
}

impl Usage {
    /// Takes in a later report about the *same* call.
    ///
    /// Providers report running totals, some fields early and some late, so each field keeps its greatest value.
    /// Adding two reports of one call would count it twice.
    pub fn merge_snapshot(&mut self, later: &Self) {
        self.input_tokens = self.input_tokens.max(later.input_tokens);
        self.cached_input_tokens = self.cached_input_tokens.max(later.cached_input_tokens);
        self.cache_write_short_tokens = self.cache_write_short_tokens.max(later.cache_write_short_tokens);
        self.cache_write_long_tokens = self.cache_write_long_tokens.max(later.cache_write_long_tokens);
        self.output_tokens = self.output_tokens.max(later.output_tokens);
        self.reasoning_tokens = self.reasoning_tokens.max(later.reasoning_tokens);
        self.estimated |= later.estimated;
    }
}

/// Adds up *different* calls. Saturates: a provider's nonsense never makes a worker panic.
impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        let sum = |total: &mut u64, more: u64| *total = total.saturating_add(more);
        sum(&mut self.input_tokens, other.input_tokens);
        sum(&mut self.cached_input_tokens, other.cached_input_tokens);
        sum(&mut self.cache_write_short_tokens, other.cache_write_short_tokens);
        sum(&mut self.cache_write_long_tokens, other.cache_write_long_tokens);
        sum(&mut self.output_tokens, other.output_tokens);
        sum(&mut self.reasoning_tokens, other.reasoning_tokens);
        if other.estimated {
            self.estimated = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usage() -> impl Strategy<Value = Usage> {
        (any::<[u32; 6]>(), any::<bool>()).prop_map(|(n, estimated)| Usage {
            input_tokens: n[0].into(),
            cached_input_tokens: n[1].into(),
            cache_write_short_tokens: n[2].into(),
            cache_write_long_tokens: n[3].into(),
            output_tokens: n[4].into(),
            reasoning_tokens: n[5].into(),
            estimated,
        })
    }

    proptest! {
        #[test]
        fn snapshots_merge_in_any_order_and_a_repeated_one_changes_nothing(a in usage(), b in usage()) {
            let (mut ab, mut ba) = (a, b);
            ab.merge_snapshot(&b);
            ba.merge_snapshot(&a);
            prop_assert_eq!(ab, ba);
            let before = ab;
            ab.merge_snapshot(&b);
            prop_assert_eq!(ab, before);
        }
    }

    #[test]
    fn different_calls_add_up_and_never_overflow() {
        let mut total = Usage {
            input_tokens: u64::MAX,
            output_tokens: 1,
            ..Usage::default()
        };
        total += Usage {
            input_tokens: 5,
            output_tokens: 2,
            estimated: true,
            ..Usage::default()
        };
        assert_eq!(
            (total.input_tokens, total.output_tokens, total.estimated),
            (u64::MAX, 3, true)
        );
    }
}
