//! What the shape of a file cannot say: which values and which combinations make sense.

use std::path::Path;

use common::egress::List;

use super::{Environment, Error, Packages, Warm};
use crate::driver::Profile;

const MEMORY_MIN_BYTES: u64 = 32 << 20;
const MOUNT_MIN_BYTES: u64 = 1 << 20;

/// Refuses an environment with the first value that makes no sense.
pub(super) fn environment(environment: &Environment, path: &Path) -> Result<(), Error> {
    check(environment, path).map_err(|(key, reason)| Error::Invalid {
        path: path.to_owned(),
        key,
        reason,
    })
}

type Wrong = (String, String);

fn refuse(key: impl Into<String>, reason: impl Into<String>) -> Result<(), Wrong> {
    Err((key.into(), reason.into()))
}

fn check(environment: &Environment, path: &Path) -> Result<(), Wrong> {
    let name = &environment.name;
    if !is_name(name) {
        return refuse("name", "must be 1 to 40 lower case letters, digits and hyphens");
    }
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(name) {
        return refuse("name", format!("is {name:?} and must be that of the file"));
    }
    if environment.image.as_ref().is_some_and(|image| image.trim().is_empty()) {
        return refuse(
            "image",
            "is empty; leave the key out for the image built from this file",
        );
    }
    packages(&environment.packages)?;
    languages(environment)?;
    for name in environment.env.keys() {
        if name.is_empty() || name.contains(['=', '\0']) {
            return refuse("env", format!("has {name:?}, which cannot be the name of a variable"));
        }
    }
    for (name, value) in &environment.env {
        if value.contains('\0') {
            return refuse(format!("env.{name}"), "holds a NUL byte");
        }
    }
    profile(&environment.profile)?;
    warm(&environment.warm)?;
    rules("egress", &environment.egress)?;
    rules("install.allow", &environment.install.allow)?;
    let addresses = [
        ("install.pip_index", &environment.install.pip_index),
        ("install.npm_registry", &environment.install.npm_registry),
    ];
    for (key, address) in addresses {
        let is_fine = |address: &String| address.starts_with("http://") || address.starts_with("https://");
        if !address.as_ref().is_none_or(is_fine) {
            return refuse(key, "must begin with https:// or http://");
        }
    }

    Ok(())
}

fn packages(packages: &Packages) -> Result<(), Wrong> {
    if packages.from.as_deref().is_some_and(|name| !is_name(name)) {
        return refuse("packages.from", "must be the name of an environment");
    }
    if packages.from.is_some() && packages.base.is_some() {
        return refuse("packages.from", "cannot be combined with packages.base");
    }
    for (key, names) in [
        ("system", &packages.system),
        ("pip", &packages.pip),
        ("npm", &packages.npm),
    ] {
        // They become words of a shell script, so nothing that a shell would read as more than a name.
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "@._+/:=~^-[],".contains(c);
        if let Some(name) = names
            .iter()
            .find(|name| !name.chars().all(is_fine) || name.is_empty() || name.starts_with('-'))
        {
            return refuse(
                format!("packages.{key}"),
                format!("has {name:?}, which is not the name of a package"),
            );
        }
    }
    Ok(())
}

fn languages(environment: &Environment) -> Result<(), Wrong> {
    for (name, language) in &environment.languages {
        let file = &language.file;
        if file.is_empty() || file.starts_with('.') || file.contains(['/', '\0']) {
            return refuse(
                format!("languages.{name}.file"),
                format!("is {file:?} and must be the plain name of a file"),
            );
        }
        if !language.command.iter().any(|word| word.contains("{file}")) {
            return refuse(format!("languages.{name}.command"), "must say where {file} goes");
        }
    }
    Ok(())
}

fn profile(profile: &Profile) -> Result<(), Wrong> {
    if !(0.01..=1024.0).contains(&profile.cpus) {
        return refuse("profile.cpus", "must be from 0.01 to 1024");
    }
    if profile.memory_bytes < MEMORY_MIN_BYTES {
        return refuse(
            "profile.memory",
            "must be at least 32MiB: the init and a program need as much",
        );
    }
    if profile.pids < 8 {
        return refuse("profile.pids", "must be at least 8: the init needs some itself");
    }
    if profile.nofile < 64 {
        return refuse("profile.nofile", "must be at least 64");
    }
    if profile.workspace_bytes < MOUNT_MIN_BYTES {
        return refuse("profile.workspace", "must be at least 1MiB");
    }
    if profile.tmp_bytes < MOUNT_MIN_BYTES {
        return refuse("profile.tmp", "must be at least 1MiB");
    }
    if profile.inodes < 64 {
        return refuse("profile.inodes", "must be at least 64");
    }
    let all = [profile.workspace_bytes, profile.tmp_bytes];
    let fits = all
        .iter()
        .try_fold(profile.memory_bytes, |sum, size| sum.checked_add(*size));
    if fits.is_none_or(|sum| i64::try_from(sum).is_err()) {
        return refuse("profile.memory", "is too large together with the writable mounts");
    }
    Ok(())
}

fn warm(warm: &Warm) -> Result<(), Wrong> {
    if warm.max == 0 || warm.max < warm.size {
        return refuse("warm.max", "must be at least 1 and not below warm.size");
    }
    if warm.idle.is_zero() {
        return refuse("warm.idle", "must be longer than nothing");
    }
    if warm.age <= warm.idle {
        return refuse("warm.age", "must be longer than warm.idle");
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=40).contains(&name.len()) && name.chars().all(is_fine) && !name.starts_with('-')
}

fn rules(key: &str, rules: &[String]) -> Result<(), Wrong> {
    match List::parse(rules) {
        Ok(_) => Ok(()),
        Err(error) => refuse(key, format!("has {error}")),
    }
}
