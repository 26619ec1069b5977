//! What sandboxes are made with: a Docker engine, or bubblewrap; and what limits them.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Check, Level};
use crate::services::{docker, programs};

/// All that concerns sandboxes. One way to make them is required, and Docker is the better one.
pub(super) async fn all(docker_host: &str) -> Vec<Check> {
    let docker = docker(docker_host).await;
    let mut bubblewrap = bubblewrap();
    if docker.level != Level::Ok && bubblewrap.level != Level::Ok {
        bubblewrap.level = Level::Missing;
    }
    vec![cgroups(), user_namespaces(), bubblewrap, docker]
}

/// What holds memory, processes and CPU of a sandbox within limits.
fn cgroups() -> Check {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        return if ["memory", "pids", "cpu"]
            .iter()
            .all(|name| controllers.split_whitespace().any(|word| word == *name))
        {
            Check::ok("cgroups", "version 2 with memory, pids and cpu")
        } else {
            Check::warn("cgroups", format!("version 2 with {}", controllers.trim()), LIMITLESS)
        };
    }
    let has = |name: &str| root.join(name).is_dir();
    if has("memory") && has("pids") && (has("cpu") || has("cpu,cpuacct")) {
        Check::ok("cgroups", "version 1 with memory, pids and cpu")
    } else {
        Check::warn("cgroups", "without memory, pids or cpu", LIMITLESS)
    }
}

const LIMITLESS: &str =
    "sandboxes have no limits of memory, processes or CPU: boot with systemd.unified_cgroup_hierarchy=1";

/// What bubblewrap needs without root.
fn user_namespaces() -> Check {
    if succeeds(Command::new("unshare").args(["--user", "--map-root-user", "true"])) {
        Check::ok("namespaces", "user namespaces are allowed")
    } else {
        Check::warn(
            "namespaces",
            "user namespaces are refused",
            "bubblewrap then needs root: sysctl kernel.unprivileged_userns_clone=1, and on Ubuntu 24.04 also \
             kernel.apparmor_restrict_unprivileged_userns=0",
        )
    }
}

/// The development driver, tried for real.
fn bubblewrap() -> Check {
    let Some(program) = programs::find("bwrap") else {
        return Check::warn("bubblewrap", "not installed", "apt-get install bubblewrap");
    };
    let version = programs::version(&program).unwrap_or_default();
    let mut trial = Command::new(&program);
    trial.args([
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "true",
    ]);
    if succeeds(&mut trial) {
        Check::ok("bubblewrap", format!("{version}, and it works"))
    } else {
        Check::warn(
            "bubblewrap",
            format!("{version}, but it may not make a sandbox"),
            "see namespaces, or run as root",
        )
    }
}

/// The engine for real use.
async fn docker(host: &str) -> Check {
    const ADVICE: &str =
        "sandboxes are made with bubblewrap, which is for development; for more: apt-get install docker.io";
    match docker::probe(host).await {
        Ok(engine) if engine.is_new_enough() => Check::ok(
            "docker",
            format!("engine {}, API {} at {host}", engine.version, engine.api_version),
        ),
        Ok(engine) => Check::warn(
            "docker",
            format!("engine {}, API {}", engine.version, engine.api_version),
            ADVICE,
        ),
        Err(error) => Check::warn("docker", format!("{error}"), ADVICE),
    }
}

fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
