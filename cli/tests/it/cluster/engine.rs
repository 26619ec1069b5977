//! A Docker engine of a test's own, to be restarted, filled up and killed, with an image of two megabytes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{SOON, lines, required};

/// What its sandboxes start from: a shell, a few programs and the init.
pub(crate) const IMAGE: &str = "hothouse/small:current";

/// Programs of the image, with the libraries that they need.
const PROGRAMS: [&str; 6] = ["/bin/sh", "/bin/sleep", "/bin/cat", "/bin/dd", "/bin/rm", "/bin/seq"];

/// Whatever the engine and the kernel know of sandboxes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) containers: Vec<String>,
    pub(crate) volumes: Vec<String>,
    pub(crate) mounts: Vec<String>,
    pub(crate) cgroups: BTreeSet<PathBuf>,
    pub(crate) processes: Vec<String>,
    pub(crate) files: BTreeSet<PathBuf>,
}

impl Remains {
    /// What is here and was not there.
    fn beyond(self, before: &Self) -> Self {
        let lists = |now: Vec<String>, then: &[String]| now.into_iter().filter(|one| !then.contains(one)).collect();
        Self {
            containers: lists(self.containers, &before.containers),
            volumes: lists(self.volumes, &before.volumes),
            mounts: lists(self.mounts, &before.mounts),
            cgroups: &self.cgroups - &before.cgroups,
            processes: lists(self.processes, &before.processes),
            files: &self.files - &before.files,
        }
    }
}

/// See the module. It ends with its folder when it is dropped.
pub(crate) struct Engine {
    folder: PathBuf,
    is_mount: bool,
}

impl Engine {
    /// Starts one, with its image.
    pub(crate) fn start() -> Self {
        Self::start_in(None)
    }

    /// The same on a disk of its own of so many MiB, when there is a number.
    pub(crate) fn start_in(disk_mib: Option<u32>) -> Self {
        let mut id = Uuid::now_v7().simple().to_string();
        // The path of a socket has little room.
        let folder = std::env::temp_dir().join(format!("hh-engine-{}", &id.split_off(20)));
        fs::create_dir_all(&folder).unwrap();
        if let Some(size) = disk_mib {
            let options = format!("size={size}m");
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(&folder)
                .status();
            assert!(mounted.unwrap().success(), "a disk of its own");
        }
        let this = Self {
            folder,
            is_mount: disk_mib.is_some(),
        };
        this.begin();
        this.load_image();
        this
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.display())
    }

    /// Starts it again, or for the first time.
    pub(crate) fn begin(&self) {
        self.script("start");
    }

    /// Ends it, as a restart of the service does: its containers end with it.
    pub(crate) fn stop(&self) {
        self.script("stop");
    }

    /// SIGKILL, so that it has no time to end anything.
    pub(crate) fn kill(&self) {
        let pid = fs::read_to_string(self.folder.join("dockerd.pid")).unwrap();
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    pub(crate) fn docker(&self, words: &[&str]) -> Output {
        Command::new("docker")
            .args(["-H", &self.host()])
            .args(words)
            .output()
            .unwrap()
    }

    /// The lines that a command prints, which must succeed.
    pub(crate) fn ask(&self, words: &[&str]) -> Vec<String> {
        let output = self.docker(words);
        assert!(output.status.success(), "docker {words:?}: {output:?}");
        lines(&output)
    }

    /// Every container's id.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.ask(&["ps", "-aq", "--no-trunc"])
    }

    /// The id of each that runs.
    pub(crate) fn running(&self) -> Vec<String> {
        self.ask(&["ps", "-q"])
    }

    /// The host's number of the init of each container that runs.
    pub(crate) fn inits(&self) -> Vec<i32> {
        let ids = self.running();
        let mut words = vec!["inspect", "-f", "{{.State.Pid}}"];
        words.extend(ids.iter().map(String::as_str));
        if ids.is_empty() {
            return Vec::new();
        }
        // One that has gone meanwhile is left out, and makes the whole a failure.
        let pids = lines(&self.docker(&words))
            .into_iter()
            .filter_map(|pid| pid.parse().ok());
        pids.filter(|pid| *pid > 0).collect()
    }

    /// Builds and names the image.
    pub(crate) fn load_image(&self) {
        let root = self.folder.join("root");
        make_root(&root);
        let mut tar = Command::new("tar")
            .args(["-c", "--numeric-owner", "-C"])
            .arg(&root)
            .arg(".")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let imported = Command::new("docker")
            .args(["-H", &self.host(), "import", "-", IMAGE])
            .stdin(tar.stdout.take().unwrap())
            .output()
            .unwrap();
        assert!(
            imported.status.success() && tar.wait().unwrap().success(),
            "{imported:?}"
        );
        fs::remove_dir_all(root).unwrap();
    }

    /// Takes all room that its disk has.
    pub(crate) fn fill_disk(&self) {
        assert!(self.is_mount, "somebody else's disk");
        let mut ballast = fs::File::create(self.folder.join("ballast")).unwrap();
        let some = vec![0; 64 << 10];
        while ballast.write_all(&some).is_ok() {}
    }

    /// Gives that room back.
    pub(crate) fn free_disk(&self) {
        fs::remove_file(self.folder.join("ballast")).unwrap();
    }

    /// What there is of sandboxes now, in the engine's books and the kernel's.
    pub(crate) fn remains(&self) -> Remains {
        let text = self.folder.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let below = format!("{text}/");
        let mut files = BTreeSet::new();
        for place in [
            "data/containers",
            "data/overlay2",
            "exec/containerd/daemon/io.containerd.runtime.v2.task/moby",
        ] {
            let entries = fs::read_dir(self.folder.join(place)).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| entry.path()));
        }
        let mut cgroups = BTreeSet::new();
        for place in self.cgroups() {
            let folders = fs::read_dir(&place).into_iter().flatten().flatten();
            cgroups.extend(folders.map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        Remains {
            containers: self.containers(),
            volumes: self.ask(&["volume", "ls", "-q"]),
            mounts: mounts
                .lines()
                .filter_map(|line| line.split(' ').nth(1))
                .filter(|place| place.starts_with(&below))
                .map(str::to_owned)
                .collect(),
            cgroups,
            processes: processes_with(&format!("{text}/exec/containerd/containerd.sock")),
            files,
        }
    }

    /// Where its containers' cgroups are: one folder, or one of each hierarchy of the first version.
    fn cgroups(&self) -> Vec<PathBuf> {
        let name = self.folder.file_name().unwrap();
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let places = hierarchies.map(|entry| entry.path()).chain([root.to_owned()]);
        places
            .map(|place| place.join(name))
            .filter(|place| place.is_dir())
            .collect()
    }

    /// Waits until there is no more of sandboxes than `before`.
    pub(crate) async fn until_clean(&self, before: &Remains) {
        Self::until_same(before, || self.remains()).await;
    }

    /// The same without a look at what an engine that was killed itself leaves: cgroups, and the folder of a container that
    /// it was making.
    pub(crate) async fn until_clean_but_for_its_own(&self, before: &Remains) {
        let look = || Remains {
            cgroups: before.cgroups.clone(),
            files: before.files.clone(),
            ..self.remains()
        };
        Self::until_same(before, look).await;
    }

    async fn until_same(before: &Remains, look: impl Fn() -> Remains) {
        let begun = Instant::now();
        loop {
            let left = look().beyond(before);
            if left == Remains::default() {
                return;
            }
            assert!(begun.elapsed() < SOON, "left behind: {left:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn script(&self, action: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/dockerd.sh");
        let done = Command::new(script)
            .arg(action)
            .arg(&self.folder)
            .env(
                "HOTHOUSE_DOCKERD_CGROUP",
                Path::new("/").join(self.folder.file_name().unwrap()),
            )
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.script("stop");
        // Some of those that the engine made are still being emptied by the kernel, and go with the machine.
        self.cgroups().iter().map(fs::remove_dir).for_each(drop);
        if self.is_mount {
            let unmounted = Command::new("umount").arg("--lazy").arg(&self.folder).status();
            assert!(unmounted.unwrap().success());
        }
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A root with the programs, the folders that a sandbox needs, and the init.
fn make_root(root: &Path) {
    for folder in ["dev", "proc", "sys", "etc", "tmp", "workspace", "bin", ".hothouse"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for program in PROGRAMS {
        copy(Path::new(program), root, Path::new(program));
        let needs = Command::new("ldd").arg(program).output().unwrap();
        let text = String::from_utf8(needs.stdout).unwrap();
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(library), root, Path::new(library));
        }
    }
    let init = required("HOTHOUSE_TEST_INIT");
    copy(Path::new(&init), root, Path::new("/.hothouse/init"));
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(root.join("workspace"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(root.join("workspace"), Some(1000), Some(1000)).unwrap();
}

fn copy(from: &Path, root: &Path, to: &Path) {
    let to = root.join(to.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// Numbers and command lines of the host's processes that have this text in it.
fn processes_with(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let with = processes.filter_map(|process| {
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        (command.contains("shim") && command.contains(text))
            .then(|| format!("{} {command}", process.file_name().display()))
    });
    with.collect()
}

/// Waits, without giving way to anybody, until none of these processes runs any more; how long that took.
pub(crate) fn until_dead(pids: &BTreeSet<i32>, limit: Duration) -> Duration {
    let begun = Instant::now();
    let mut left: Vec<i32> = pids.iter().copied().collect();
    while !left.is_empty() {
        left.retain(|pid| runs(*pid));
        assert!(
            begun.elapsed() < limit,
            "{} processes still run after {limit:?}",
            left.len()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

/// Whether it can still do something: one that nobody has reaped cannot.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Every process of those sandboxes with these inits in which something runs. Init has forks of itself that wait for a
/// program; they are none.
pub(crate) fn processes_of_jobs(inits: &[i32]) -> BTreeSet<i32> {
    let is_init = |pid: &i32| {
        let image = fs::read_link(format!("/proc/{pid}/exe"));
        image.is_ok_and(|image| image.ends_with(".hothouse/init"))
    };
    let of_jobs = inits
        .iter()
        .map(|init| processes_of(&[*init]))
        .filter(|found| !found.iter().all(is_init));
    of_jobs.flatten().collect()
}

/// Every process of the sandboxes with these inits.
pub(crate) fn processes_of(inits: &[i32]) -> BTreeSet<i32> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let theirs: BTreeSet<PathBuf> = inits.iter().filter_map(|pid| namespace(&pid.to_string())).collect();
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|process| {
        let pid = process.file_name().into_string().ok()?;
        theirs.contains(&namespace(&pid)?).then(|| pid.parse().ok())?
    })
    .collect()
}
