//! What the private servers need: their programs, a folder, a port.

use std::net::SocketAddr;
use std::path::Path;

use super::Check;
use crate::services::folder::DataFolder;
use crate::services::{ports, programs};

/// Postgres's server programs.
pub(super) fn postgres() -> Check {
    match programs::postgres().first() {
        Some((_, bin)) => {
            let version = programs::version(&bin.join("postgres")).unwrap_or_default();
            Check::ok("postgres", format!("{version} in {}", bin.display()))
        }
        None => Check::missing("postgres", "not installed", "apt-get install postgresql"),
    }
}

/// Redis, new enough.
pub(super) fn redis() -> Check {
    match programs::redis() {
        Ok(program) => {
            let version = programs::version(&program).unwrap_or_default();
            Check::ok("redis", format!("{version} at {}", program.display()))
        }
        Err(error) => Check::missing("redis", "not usable", format!("{error:#}")),
    }
}

/// The data folder, where there is one.
pub(super) fn data_folder(path: &Path) -> Check {
    if !path.exists() {
        return Check::ok("data", format!("{} will be made", path.display()));
    }
    match DataFolder::open(path) {
        Ok(folder) => Check::ok("data", folder.path().display().to_string()),
        Err(error) => Check::missing("data", "not usable", format!("{error:#}")),
    }
}

/// The address of the API: free, or ours.
pub(super) fn port(listen: SocketAddr, data_dir: &Path) -> Check {
    let folder = DataFolder::open(data_dir).ok();
    match folder.filter(DataFolder::is_held).and_then(|folder| folder.running()) {
        Some(running) => Check::ok(
            "port",
            format!("Hothouse runs at http://{} (pid {})", running.address, running.pid),
        ),
        None => match ports::check(listen) {
            Ok(()) => Check::ok("port", format!("{listen} is free")),
            Err(error) => Check::missing("port", "not usable", format!("{error:#}")),
        },
    }
}
