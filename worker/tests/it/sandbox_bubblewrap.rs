//! The bubblewrap driver keeps what every driver promises.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
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

/// The driver, with its state below this folder.
pub(crate) fn driver_in(state: &Path) -> Bubblewrap {
    let settings = Settings {
        init: init(),
        state: state.to_owned(),
        bwrap: "bwrap".into(),
    };
    Bubblewrap::new(settings).unwrap()
}

pub(crate) async fn subject() -> Subject {
    let state = tempfile::tempdir().unwrap();
    let driver = driver_in(state.path());
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
