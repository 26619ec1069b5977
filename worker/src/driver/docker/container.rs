//! What a sandbox's container may do: as little as will run a program.
//!
//! - Nothing to write to but two sized tmpfs; no network; no device; no mount of the host's.
//! - The job has no capability at all. Init keeps three: SETUID and SETGID to become the job's user before it runs
//!   anything, KILL to end processes of that user. It needs no CHOWN or `DAC_OVERRIDE`, because everything that
//!   touches the job's files does so as the job.
//! - The memory limit is the profile's plus the sizes of the tmpfs, whose pages count against it: otherwise a full
//!   disk would be an out-of-memory kill. There is no swap on top.
//! - The seccomp profile is Docker's idea of ordinary programs, less what jobs never need and kernels suffer from; it
//!   is sent inline, as the API wants it.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

use super::super::{CPU_PERIOD_US, Profile, Spec};
use super::Settings;

const SECCOMP: &str = include_str!("seccomp.json");
const INIT: &str = "/.hothouse/init";

/// `/dev/shm`: enough for semaphores and small arrays.
const SHM_BYTES: u64 = 16 << 20;

/// The labels by which containers are found again. They cannot change, so nothing that changes is in them.
pub(super) mod label {
    /// The sandbox's id; its presence marks a container as ours.
    pub(crate) const SANDBOX: &str = "hothouse.sandbox";
    /// The worker that drives it.
    pub(crate) const WORKER: &str = "hothouse.worker";
    /// The boot of the machine that this worker ran on.
    pub(crate) const BOOT: &str = "hothouse.boot";
    /// The environment.
    pub(crate) const ENVIRONMENT: &str = "hothouse.environment";
    /// When, as RFC 3339.
    pub(crate) const CREATED: &str = "hothouse.created";
}

/// A sandbox's container.
pub(super) fn name(id: Uuid) -> String {
    format!("hothouse-{id}")
}

/// The whole request that creates it.
pub(super) fn body(spec: &Spec, settings: &Settings, boot: &str, at: DateTime<Utc>) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(spec.image_id.as_ref().unwrap_or(&spec.image).clone()),
        entrypoint: Some(vec![INIT.to_owned()]),
        cmd: Some(Vec::new()),
        // Root inside, with three capabilities; init becomes somebody else before it runs anything.
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        hostname: Some("sandbox".to_owned()),
        env: Some(Vec::new()),
        tty: Some(false),
        open_stdin: Some(true),
        stdin_once: Some(true),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        network_disabled: Some(true),
        stop_signal: Some("SIGKILL".to_owned()),
        labels: Some(labels(spec, boot, at)),
        host_config: Some(host_config(&spec.profile, settings)),
        ..ContainerCreateBody::default()
    }
}

fn labels(spec: &Spec, boot: &str, at: DateTime<Utc>) -> HashMap<String, String> {
    [
        (label::SANDBOX, spec.id.to_string()),
        (label::WORKER, spec.worker_id.to_string()),
        (label::BOOT, boot.to_owned()),
        (label::ENVIRONMENT, spec.environment.clone()),
        (label::CREATED, at.to_rfc3339_opts(SecondsFormat::Millis, true)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn host_config(profile: &Profile, settings: &Settings) -> HostConfig {
    let memory = number(memory_bytes(profile));
    HostConfig {
        network_mode: Some("none".to_owned()),
        readonly_rootfs: Some(true),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(["SETUID", "SETGID", "KILL"].map(str::to_owned).into()),
        security_opt: Some(vec!["no-new-privileges:true".to_owned(), format!("seccomp={SECCOMP}")]),
        memory: Some(memory),
        memory_swap: Some(memory),
        cpu_period: Some(i64::from(CPU_PERIOD_US)),
        cpu_quota: Some(number(profile.cpu_quota_us())),
        pids_limit: Some(i64::from(profile.pids)),
        ulimits: Some(vec![ulimit("nofile", number(profile.nofile)), ulimit("core", 0)]),
        // Under pressure the machine loses a sandbox before anything else.
        oom_score_adj: Some(500),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        shm_size: Some(number(SHM_BYTES)),
        tmpfs: Some(tmpfs(profile)),
        auto_remove: Some(true),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        // What jobs print goes over the pipe; a log file would only fill the disk.
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        runtime: settings.runtime.clone(),
        ..HostConfig::default()
    }
}

/// The limit of the container: the job's memory and every page that its writable mounts can hold.
fn memory_bytes(profile: &Profile) -> u64 {
    profile.memory_bytes + profile.workspace_bytes + profile.tmp_bytes + SHM_BYTES
}

/// The folders exist in the image with these owners and modes, because some runtimes ignore the options then.
fn tmpfs(profile: &Profile) -> HashMap<String, String> {
    let inodes = profile.inodes;
    let workspace = format!(
        "rw,exec,nosuid,nodev,size={},nr_inodes={inodes},uid=1000,gid=1000,mode=0700",
        profile.workspace_bytes
    );
    let tmp = format!(
        "rw,exec,nosuid,nodev,size={},nr_inodes={inodes},mode=1777",
        profile.tmp_bytes
    );
    HashMap::from([("/workspace".to_owned(), workspace), ("/tmp".to_owned(), tmp)])
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(name.to_owned()),
        soft: Some(value),
        hard: Some(value),
    }
}

/// The engine's numbers are signed.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostConfig {
        host_config(&Profile::default(), &Settings::default())
    }

    #[test]
    fn the_seccomp_profile_allows_by_name_and_holds_none_of_the_dangerous_ones() {
        let profile: serde_json::Value = serde_json::from_str(SECCOMP).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let rules = profile["syscalls"].as_array().unwrap();
        let allowed: Vec<&str> = rules
            .iter()
            .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null())
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap())
            .collect();
        assert!(allowed.contains(&"execve") && allowed.len() > 200);
        for name in [
            "io_uring_setup",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "ptrace",
            "mount",
            "unshare",
            "setns",
            "clone",
            "clone3",
            "socket",
            "socketpair",
            "personality",
        ] {
            assert!(!allowed.contains(&name), "{name} is allowed without a condition");
        }
    }

    #[test]
    fn pairs_of_sockets_are_of_one_family() {
        let profile: serde_json::Value = serde_json::from_str(SECCOMP).unwrap();
        let rules = profile["syscalls"].as_array().unwrap().iter();
        let pairs = rules.filter(|rule| rule["names"].as_array().unwrap().contains(&"socketpair".into()));
        let args: Vec<_> = pairs.map(|rule| &rule["args"]).collect();
        let af_unix = serde_json::json!([{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]);
        assert_eq!(args, [&af_unix]);
    }

    #[test]
    fn a_full_disk_is_no_oom_and_there_is_no_swap() {
        let host = host();
        let mounts = (512 << 20) + (128 << 20) + (16 << 20);
        assert_eq!(host.memory, Some((1 << 30) + mounts));
        assert_eq!(host.memory_swap, host.memory);
    }

    #[test]
    fn nothing_is_shared_with_the_host() {
        let host = host();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.binds, None);
        assert_eq!(host.mounts, None);
        assert_eq!(host.devices, None);
        assert_eq!(host.pid_mode, None);
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
    }
}
