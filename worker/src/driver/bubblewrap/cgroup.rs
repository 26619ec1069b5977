//! Cgroups of sandboxes, in both versions: made below the worker's own, so that its limits hold for them too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

use super::command::SHM_BYTES;
use crate::driver::{CPU_PERIOD_US, Found, Profile, Spec};

const PREFIX: &str = "hothouse";
// Longer than any sandbox takes from its cgroup to its first process.
const EMPTY_MAX: Duration = Duration::from_mins(1);
// Init, one supervisor and the process of `bwrap` that waits outside.
const OWN_PROCESSES: u32 = 3;

/// Where cgroups of sandboxes are made. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    // In the first version one place for each controller.
    places: Arc<[Place]>,
}

#[derive(Debug)]
struct Place {
    name: &'static str,
    folder: PathBuf,
}

/// The cgroups of one sandbox. Dropping it removes them, and waits a little for what was killed in them.
#[derive(Debug)]
pub(super) struct Limited {
    made: Vec<Place>,
}

impl Cgroups {
    /// Finds a place where limits can be set.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn find() -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}"))?;
        let found = Self {
            places: second_version(&own, &mounts)
                .or_else(|_| first_version(&own, &mounts))?
                .into(),
        };
        let trial = Spec {
            id: Uuid::nil(),
            worker_id: Uuid::now_v7(),
            environment: String::new(),
            image: String::new(),
            image_id: None,
            profile: Profile::default(),
        };
        found.make(&trial).map_err(|e| format!("cgroups cannot be made: {e}"))?;
        Ok(found)
    }

    /// Makes those of a sandbox and sets its limits.
    pub(super) fn make(&self, spec: &Spec) -> io::Result<Limited> {
        let name = format!("{PREFIX}-{}-{}", spec.worker_id.simple(), spec.id.simple());
        let mut limited = Limited { made: Vec::new() };
        for place in &*self.places {
            let folder = place.folder.join(&name);
            fs::create_dir(&folder)?;
            limited.made.push(Place {
                name: place.name,
                folder: folder.clone(),
            });
            limit(place.name, &folder, &spec.profile)?;
        }
        Ok(limited)
    }

    /// Every sandbox that has a cgroup, also those of workers that are not there any more. A cgroup that has been empty
    /// for long belongs to none: its worker died before it could remove it.
    pub(super) fn all(&self) -> Vec<Found> {
        let mut found: Vec<Found> = Vec::new();
        let folders = self.places.iter().filter_map(|place| fs::read_dir(&place.folder).ok());
        for entry in folders.flatten().flatten() {
            let Some(sandbox) = read_name(&entry) else { continue };
            let age = SystemTime::now()
                .duration_since(sandbox.created_at.into())
                .unwrap_or_default();
            // The kernel refuses to remove one that is not empty.
            let is_removed = age > EMPTY_MAX && fs::remove_dir(entry.path()).is_ok();
            if !is_removed && found.iter().all(|other| other.id != sandbox.id) {
                found.push(sandbox);
            }
        }
        found
    }

    /// Kills what is left in those of a sandbox and removes them.
    pub(super) fn remove(&self, id: Uuid) -> io::Result<()> {
        let end = format!("-{}", id.simple());
        for place in &*self.places {
            for entry in fs::read_dir(&place.folder)?.flatten() {
                let is_its = entry
                    .file_name()
                    .to_str()
                    .is_some_and(|n| n.starts_with(PREFIX) && n.ends_with(&end));
                if is_its {
                    kill_all(&entry.path());
                    remove_folder(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

impl Limited {
    /// What a process must enter.
    pub(super) fn folders(&self) -> Vec<&Path> {
        self.made.iter().map(|place| place.folder.as_path()).collect()
    }

    /// What init reads, by the name that it knows.
    pub(super) fn readable(&self) -> Vec<(&'static str, &Path)> {
        let wanted = self
            .made
            .iter()
            .filter(|place| matches!(place.name, "unified" | "memory" | "cpuacct"));
        wanted.map(|place| (place.name, place.folder.as_path())).collect()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        for place in &self.made {
            kill_all(&place.folder);
            if let Err(error) = remove_folder(&place.folder) {
                tracing::warn!(folder = %place.folder.display(), %error, "a cgroup stays behind until it is swept");
            }
        }
    }
}

fn second_version(own: &str, mounts: &str) -> Result<Vec<Place>, String> {
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or("there is no cgroup of version 2")?;
    let mount = mount_of(mounts, "cgroup2", "").ok_or("version 2 is not mounted")?;
    let folder = below(&mount, path);
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "memory") {
        return Err("the memory controller is not here".to_owned());
    }
    fs::write(folder.join("cgroup.subtree_control"), "+memory +pids +cpu")
        .map_err(|e| format!("{} is not delegated: {e}", folder.display()))?;
    Ok(vec![Place {
        name: "unified",
        folder,
    }])
}

fn first_version(own: &str, mounts: &str) -> Result<Vec<Place>, String> {
    let place = |name: &'static str| {
        let mount = mount_of(mounts, "cgroup", name)?;
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let has_it = fields.next()?.split(',').any(|controller| controller == name);
            fields.next().filter(|_| has_it)
        })?;
        Some(Place {
            name,
            folder: below(&mount, path),
        })
    };
    let mut places: Vec<Place> = Vec::new();
    for name in ["memory", "pids", "cpu", "cpuacct"] {
        let place = place(name).ok_or_else(|| format!("there is no {name} controller"))?;
        // Controllers that are mounted together share their folders.
        if !places.iter().any(|other| other.folder == place.folder) {
            places.push(place);
        }
    }
    Ok(places)
}

fn mount_of(mounts: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let mut fields = rest.split(' ');
        let is_kind = fields.next()? == kind;
        let has_controller = controller.is_empty() || fields.nth(1)?.split(',').any(|option| option == controller);
        (is_kind && has_controller).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The folder of a cgroup. In a container the path may be the host's, and then the mount itself is the cgroup.
fn below(mount: &Path, path: &str) -> PathBuf {
    let folder = mount.join(path.trim_start_matches('/'));
    if folder.is_dir() { folder } else { mount.to_owned() }
}

fn limit(name: &str, folder: &Path, profile: &Profile) -> io::Result<()> {
    let set = |file: &str, value: String| fs::write(folder.join(file), value);
    // What is written to the mounts in memory counts too, so that a full disk is not out of memory.
    let memory = profile.memory_bytes + profile.workspace_bytes + profile.tmp_bytes + SHM_BYTES;
    let processes = (profile.pids + OWN_PROCESSES).to_string();
    let quota = profile.cpu_quota_us();
    match name {
        "unified" => {
            set("memory.max", memory.to_string())?;
            if folder.join("memory.swap.max").exists() {
                set("memory.swap.max", "0".to_owned())?;
            }
            set("pids.max", processes)?;
            set("cpu.max", format!("{quota} {CPU_PERIOD_US}"))
        }
        "memory" => {
            set("memory.limit_in_bytes", memory.to_string())?;
            if folder.join("memory.memsw.limit_in_bytes").exists() {
                set("memory.memsw.limit_in_bytes", memory.to_string())?;
            }
            Ok(())
        }
        "pids" => set("pids.max", processes),
        "cpu" => {
            set("cpu.cfs_period_us", CPU_PERIOD_US.to_string())?;
            set("cpu.cfs_quota_us", quota.to_string())
        }
        _ => Ok(()),
    }
}

fn read_name(entry: &fs::DirEntry) -> Option<Found> {
    let name = entry.file_name().into_string().ok()?;
    let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
    let worker_id = Uuid::parse_str(parts.next()?).ok()?;
    let id = Uuid::parse_str(parts.next()?).ok().filter(|id| !id.is_nil())?;
    Some(Found {
        id,
        worker_id,
        created_at: entry.metadata().and_then(|meta| meta.modified()).ok()?.into(),
    })
}

fn kill_all(folder: &Path) {
    let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
        let killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        tracing::debug!(pid, ?killed, "killing what was left in a cgroup");
    }
}

/// Removes a cgroup. A process that was just killed may hold it for a moment.
fn remove_folder(folder: &Path) -> io::Result<()> {
    for _ in 0..50 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 20 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
32 20 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn controllers_are_found_where_they_are_mounted() {
        assert_eq!(
            mount_of(MOUNTS, "cgroup", "memory"),
            Some("/sys/fs/cgroup/memory".into())
        );
        assert_eq!(
            mount_of(MOUNTS, "cgroup", "cpuacct"),
            Some("/sys/fs/cgroup/cpu,cpuacct".into())
        );
        assert_eq!(mount_of(MOUNTS, "cgroup", "pids"), None);
        assert_eq!(mount_of(MOUNTS, "cgroup2", ""), Some("/sys/fs/cgroup/unified".into()));
    }
}
