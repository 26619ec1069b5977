//! Processes that another `up` may have started: which are ours, and how they end.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether `pid` is a living process of that name whose working folder is `folder`. Both servers work in their data.
pub(crate) fn is_ours(pid: i32, name: &str, folder: &Path) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let Ok(works_in) = fs::metadata(format!("/proc/{pid}/cwd")) else {
        return false;
    };
    let Ok(folder) = fs::metadata(folder) else { return false };
    // By inode and not by name: a server may see the folder under another name, in a mount namespace of its own.
    comm.trim() == name && (works_in.dev(), works_in.ino()) == (folder.dev(), folder.ino())
}

/// The pid in the first line of a file.
pub(crate) fn read_pid(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
}

/// Waits until `done` is true, at most `limit`. Returns whether it became true.
pub(crate) async fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Ends a process of ours: with `signal`, and with SIGKILL when it has not ended after `grace`.
/// Returns whether it went before it was killed.
pub(crate) async fn end(pid: i32, name: &str, folder: &Path, signal: Signal, grace: Duration) -> bool {
    if !is_ours(pid, name, folder) {
        return true;
    }
    send(pid, signal);
    if wait_until(grace, || !is_ours(pid, name, folder)).await {
        return true;
    }
    send(pid, Signal::SIGKILL);
    wait_until(Duration::from_secs(5), || !is_ours(pid, name, folder)).await;
    false
}

/// Sends a signal. Returns whether there was a process to send it to.
pub(crate) fn send(pid: i32, signal: Signal) -> bool {
    kill(Pid::from_raw(pid), signal).is_ok()
}

/// The last lines of a log file that are not empty, for a sentence about why its server did not start.
pub(crate) fn last_lines(file: &Path, count: usize) -> String {
    let text = fs::read(file)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_process_in_the_folder_is_ours_and_ends() {
        let folder = std::env::temp_dir().join(format!("hothouse-process-{}", uuid::Uuid::now_v7()));
        fs::create_dir(&folder).unwrap();
        let mut child = tokio::process::Command::new("sleep")
            .arg("60")
            .current_dir(&folder)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        assert!(wait_until(Duration::from_secs(10), || is_ours(pid, "sleep", &folder)).await);

        assert!(!is_ours(pid, "sleep", Path::new("/")));
        assert!(!is_ours(pid, "redis-server", &folder));
        let politely = end(pid, "sleep", &folder, Signal::SIGTERM, Duration::from_secs(10)).await;

        assert!(politely);
        assert!(!child.wait().await.unwrap().success());
        fs::remove_dir(folder).unwrap();
    }
}
