//! The worker against real sandboxes: every driver, its conformance, the pool.
