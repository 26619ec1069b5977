//! Steps of Redis's clock. Leases pass by it, so that one forward makes all of them pass at once, whoever lives.

use std::time::{Duration, Instant};

/// What is no step: clocks differ in speed.
const STEP: Duration = Duration::from_secs(1);

/// Compares Redis's clock with that of this process, which nobody sets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steps {
    /// What Redis said last, and when it was asked.
    last: Option<(Duration, Instant)>,
}

impl Steps {
    /// Hears the time that Redis answered `until`, when it was asked at `asked`. Answers whether its clock was set forward
    /// since the last time.
    pub(super) fn hear(&mut self, time: Duration, (asked, until): (Instant, Instant)) -> bool {
        let last = self.last.replace((time, asked));
        last.is_some_and(|(before, since)| time.saturating_sub(before) > until.duration_since(since) + STEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_forward_is_one_and_late_answers_and_steps_back_are_none() {
        let (mut steps, begun) = (Steps::default(), Instant::now());
        // Redis's time, when it was asked and when it answered, in seconds.
        let mut hear = |time: u64, asked: u64, until: u64| {
            let at = |seconds| begun + Duration::from_secs(seconds);
            steps.hear(Duration::from_secs(1_000 + time), (at(asked), at(until)))
        };
        assert!(!hear(500, 0, 0));
        assert!(!hear(506, 6, 6));
        assert!(!hear(515, 7, 16), "an answer that took nine seconds");
        assert!(
            !hear(516, 16, 17),
            "the one before came late, and said what was true when it was given"
        );
        assert!(hear(524, 18, 18));
        assert!(!hear(525, 19, 19), "once");
        assert!(!hear(500, 20, 20));
        assert!(!hear(501, 21, 21));
    }
}
