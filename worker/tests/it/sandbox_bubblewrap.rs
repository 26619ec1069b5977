//! The bubblewrap driver keeps what every driver promises.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::process::Command;
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

/// The init as PID 1 of namespaces, with nothing else that seals a sandbox.
pub(crate) fn unsealed() -> Command {
    let mut command = Command::new("bwrap");
    let words = "--unshare-ipc --unshare-pid --unshare-net --unshare-uts --as-pid-1 --die-with-parent --new-session \
        --clearenv --cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID --cap-add CAP_KILL --ro-bind /usr /usr \
        --symlink usr/bin /bin --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev \
        --perms 1777 --tmpfs /tmp --perms 0777 --tmpfs /workspace --ro-bind";
    command.args(words.split_whitespace()).arg(init());
    command.args(["/.hothouse/init", "/.hothouse/init"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
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

#[test]
fn the_init_is_small() {
    let bytes = init().metadata().unwrap().len();
    assert!(bytes < 3_000_000, "{bytes}");
}
