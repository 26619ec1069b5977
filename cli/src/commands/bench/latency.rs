//! Latencies: every sample is kept, so percentiles are exact.

use std::time::Duration;

/// Latencies in microseconds.
#[derive(Debug, Default, Clone)]
pub(super) struct Samples(Vec<u32>);

/// What is reported of samples, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Summary {
    pub(super) count: usize,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

impl Samples {
    /// Adds one; over an hour counts as the largest that can be kept.
    pub(super) fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds all of another's.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The percentiles; none without samples.
    pub(super) fn summary(mut self) -> Option<Summary> {
        self.0.sort_unstable();
        Some(Summary {
            count: self.0.len(),
            p50_ms: self.percentile(50)?,
            p95_ms: self.percentile(95)?,
            p99_ms: self.percentile(99)?,
            max_ms: self.percentile(100)?,
        })
    }

    /// The smallest sample that at least `percent` of all samples do not exceed (nearest rank), of sorted samples.
    fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).map(|micros| f64::from(*micros) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(millis: impl IntoIterator<Item = u64>) -> Option<Summary> {
        let mut samples = Samples::default();
        millis.into_iter().for_each(|ms| samples.add(Duration::from_millis(ms)));
        samples.summary()
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let hundred = summary((1..=100).rev()).unwrap();
        let expected = Summary {
            count: 100,
            p50_ms: 50.0,
            p95_ms: 95.0,
            p99_ms: 99.0,
            max_ms: 100.0,
        };
        assert_eq!(hundred, expected);
        let told = |summary: Summary| format!("{} {}", summary.p50_ms, summary.p95_ms);
        assert_eq!(told(summary(1..=10).unwrap()), "5 10");
        assert_eq!(told(summary([7]).unwrap()), "7 7");
        assert_eq!(told(summary([1, 9]).unwrap()), "1 9");
    }

    #[test]
    fn no_samples_have_no_percentiles() {
        assert_eq!(summary([]), None);
    }
}
