//! The Prometheus recorder. Metric names are `hothouse_<part>_<what>_<unit>`; `docs/metrics.md` lists them.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Installs the process's recorder, of which there is one however many parts run in the process, and returns the handle
/// that renders it. `None` when somebody else installed another. Whoever serves metrics calls the handle's `run_upkeep`
/// every few seconds: until then, or until it is rendered, each recorded sample is kept.
pub fn install() -> Option<PrometheusHandle> {
    // Seconds: from a fast commit to the longest agent run.
    const BUCKETS: &[f64] = &[
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
    ];
    // The recorder itself is global to the process, so its handle is too.
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            PrometheusBuilder::new()
                .set_buckets(BUCKETS)
                .ok()?
                .install_recorder()
                .ok()
        })
        .clone()
}
