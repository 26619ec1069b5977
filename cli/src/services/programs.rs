//! Where the servers' programs are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// The oldest Redis whose commands and script rules the queue relies on.
pub(crate) const REDIS_MAJOR_MIN: u32 = 7;

/// A file of that name on the PATH, or where Debian keeps programs of the administrator.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/local/bin".into()])
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

/// The folders with Postgres's server programs and their major versions, the newest first.
pub(crate) fn postgres() -> Vec<(u32, PathBuf)> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    folders.extend(find("initdb").and_then(|file| Some(file.canonicalize().ok()?.parent()?.to_owned())));
    let mut found: Vec<(u32, PathBuf)> = folders
        .into_iter()
        .filter(|folder| is_program(&folder.join("initdb")) && is_program(&folder.join("postgres")))
        .filter_map(|folder| Some((major(&version(&folder.join("postgres")).ok()?)?, folder)))
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    found.dedup();
    found
}

/// The Redis server, which is new enough.
///
/// # Errors
/// A sentence that says how to get it.
pub(crate) fn redis() -> anyhow::Result<PathBuf> {
    let Some(program) = find("redis-server") else {
        bail!("Redis is not installed: run `apt-get install redis-server`, or `make up`, which does");
    };
    let version = version(&program)?;
    match major(&version) {
        Some(major) if major >= REDIS_MAJOR_MIN => Ok(program),
        _ => bail!(
            "{} is version {version}, and Hothouse needs {REDIS_MAJOR_MIN}.0 or newer: use Debian 12, Ubuntu 24.04 or \
             later, or put a newer redis-server first on the PATH",
            program.display()
        ),
    }
}

/// The version that a program prints: the first word that begins with a digit, after `v=` where that stands.
///
/// # Errors
/// When the program does not run.
pub(crate) fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(version_in(&String::from_utf8_lossy(&output.stdout)))
}

/// The first number of a version.
pub(crate) fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn version_in(text: &str) -> String {
    text.split_whitespace()
        .map(|word| word.strip_prefix("v=").unwrap_or(word).trim_matches(','))
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
        .unwrap_or_default()
        .to_owned()
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_print() {
        let postgres = version_in("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n");
        let redis = version_in("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64\n");
        let docker = version_in("Docker version 28.2.2, build e6534b4\n");

        assert_eq!(
            (postgres.as_str(), redis.as_str(), docker.as_str()),
            ("15.18", "7.0.15", "28.2.2")
        );
        assert_eq!(major(&redis), Some(7));
        assert_eq!(major(&version_in("nothing to see")), None);
    }
}
