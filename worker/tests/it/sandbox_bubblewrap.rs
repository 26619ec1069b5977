//! The bubblewrap driver keeps what every driver promises.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;
use worker::driver::SandboxDriver;
use worker::driver::bubblewrap::{Bubblewrap, Settings};

use crate::conformance::{Subject, conformance, small};

/// The static init, which the test command builds.
#[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
pub(crate) fn init() -> PathBuf {
    let built = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/init/x86_64-unknown-linux-gnu/init/hothouse-init"
    );
    let init = std::env::var("HOTHOUSE_TEST_INIT").map_or_else(|_| PathBuf::from(built), PathBuf::from);
    assert!(
        init.is_file(),
        "there is no init at {}: run scripts/init.sh",
        init.display()
    );
    init
}

pub(crate) fn driver() -> (Bubblewrap, tempfile::TempDir) {
    let state = tempfile::tempdir().unwrap();
    let settings = Settings {
        init: init(),
        state: state.path().to_owned(),
        bwrap: "bwrap".into(),
    };
    (Bubblewrap::new(settings).unwrap(), state)
}

pub(crate) async fn subject() -> Subject {
    let (driver, state) = driver();
    driver.check().await.unwrap();
    Subject {
        driver: Arc::new(driver),
        image: String::new(),
        profile: small(),
        worker_id: Uuid::now_v7(),
        guard: Box::new(state),
    }
}

conformance!(subject);
