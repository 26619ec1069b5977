//! `hothouse up` and `down` on this machine: real servers in a folder of the test's own, on free ports.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

/// A start holds a database's making, a sandbox's first start and a job.
const START_LIMIT: Duration = Duration::from_secs(90);
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// A data folder and an address; whatever is left of it ends with the test.
pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
}

/// A running `hothouse up` and the lines that it prints.
pub(crate) struct Up {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("hothouse-up-{}", Uuid::now_v7()));
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self { folder, port }
    }

    fn hothouse(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hothouse"));
        command
            .args(words)
            .env("HOTHOUSE_DATA_DIR", &self.folder)
            .env("HOTHOUSE_SERVER", format!("http://127.0.0.1:{}", self.port))
            .env_remove("HOTHOUSE_ADMIN_KEY")
            .stdin(Stdio::null());
        command
    }

    fn up_command(&self) -> Command {
        let init = std::env::var_os("HOTHOUSE_TEST_INIT").expect("HOTHOUSE_TEST_INIT names the built hothouse-init");
        let mut command = self.hothouse(&["up", "--driver", "bubblewrap"]);
        command
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .env("HOTHOUSE_INIT", init);
        command
    }

    pub(crate) fn up(&self) -> Up {
        let mut child = self.up_command().stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(1000);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Up {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    fn run(&self, words: &[&str]) -> Output {
        let key = fs::read_to_string(self.folder.join("admin.key")).unwrap();
        self.hothouse(words)
            .env("HOTHOUSE_API_KEY", key.trim())
            .output()
            .unwrap()
    }

    fn pid(&self, file: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.folder.join(file)).ok()?;
        Some(Pid::from_raw(text.lines().next()?.trim().parse().ok()?))
    }

    fn servers(&self) -> [Pid; 2] {
        ["postgres/data/postmaster.pid", "redis/redis.pid"].map(|file| self.pid(file).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A test that failed half-way leaves nothing running.
        drop(self.hothouse(&["down", "--now"]).output());
        drop(fs::remove_dir_all(&self.folder));
    }
}

impl Up {
    /// Reads until a line holds `text`.
    pub(crate) fn until(&mut self, text: &str) {
        let deadline = Instant::now() + START_LIMIT;
        while !self.seen.last().is_some_and(|line| line.contains(text)) {
            let line = self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()));
            assert!(line.is_ok(), "{:?} before {text:?}: {:#?}", line.err(), self.seen);
            self.seen.extend(line);
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn ended(&mut self) -> i32 {
        eventually(STOP_LIMIT, || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn eventually(limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether it runs; one that ended and was not waited for does not.
fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_first_start_runs_a_job_and_down_ends_everything() {
    let place = Place::new();
    let mut up = place.up();
    up.until("stops everything");
    let seen = up.seen.join("\n");
    assert!(seen.contains("| hello from a sandbox"), "{seen}");
    assert!(seen.contains(&format!("http://127.0.0.1:{}", place.port)), "{seen}");
    assert_eq!(mode(&place.folder.join("admin.key")), 0o600);

    let job = place.run(&["run", "--language", "bash", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (text(&job.stdout), text(&job.stderr), job.status.code()),
        ("out\n".into(), "err\n".into(), Some(7))
    );

    let servers = place.servers();
    let down = place.run(&["down"]);
    assert!(text(&down.stdout).contains("Hothouse has stopped"), "{down:?}");
    assert_eq!(up.ended(), 0);
    assert_eq!(servers.map(is_alive), [false, false]);
    assert!(text(&place.run(&["down"]).stdout).contains("nothing to stop"));
}

#[test]
fn an_interrupt_ends_everything_in_order() {
    let place = Place::new();
    let mut up = place.up();
    up.until("stops everything");
    let servers = place.servers();

    kill(up.pid(), Signal::SIGINT).unwrap();

    up.until("Hothouse has stopped.");
    assert_eq!(up.ended(), 0);
    assert_eq!(servers.map(is_alive), [false, false]);
}

#[test]
fn after_a_kill_the_next_start_takes_over_and_keeps_what_was_there() {
    let place = Place::new();
    let mut killed = place.up();
    killed.until("stops everything");
    let (servers, key) = (
        place.servers(),
        fs::read_to_string(place.folder.join("admin.key")).unwrap(),
    );
    let before = place.run(&["--json", "jobs"]);
    kill(killed.pid(), Signal::SIGKILL).unwrap();
    killed.ended();
    assert_eq!(servers.map(is_alive), [true, true]);

    let mut up = place.up();
    up.until("stops everything");

    assert_eq!(place.servers(), servers);
    assert!(
        up.seen.iter().any(|line| line.contains("which was still running")),
        "{:#?}",
        up.seen
    );
    assert_eq!(fs::read_to_string(place.folder.join("admin.key")).unwrap(), key);
    let first = text(&before.stdout).lines().next().unwrap().to_owned();
    let id = first
        .split("\"id\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap()
        .to_owned();
    assert!(text(&place.run(&["--json", "jobs"]).stdout).contains(&id));
}

#[test]
fn after_a_kill_down_ends_what_was_left_behind() {
    let place = Place::new();
    let mut up = place.up();
    up.until("stops everything");
    let servers = place.servers();
    kill(up.pid(), Signal::SIGKILL).unwrap();
    up.ended();

    let down = place.run(&["down"]);

    assert!(text(&down.stdout).contains("had left behind"), "{down:?}");
    assert_eq!(servers.map(is_alive), [false, false]);
}

#[test]
fn servers_that_die_are_started_again_and_jobs_go_on() {
    let place = Place::new();
    let mut up = place.up();
    up.until("stops everything");
    let before = place.servers();
    for pid in before {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    eventually(START_LIMIT, || {
        let now = ["postgres/data/postmaster.pid", "redis/redis.pid"].map(|file| place.pid(file));
        now.iter()
            .zip(before)
            .all(|(now, before)| now.is_some_and(|now| now != before && is_alive(now)))
    });

    let job = place.run(&["run", "--language", "bash", "-c", "echo again"]);

    assert_eq!(
        (text(&job.stdout), job.status.code()),
        ("again\n".to_owned(), Some(0)),
        "{job:?}"
    );
}

#[test]
fn a_second_up_in_the_same_folder_is_refused_with_a_way_out() {
    let place = Place::new();
    let mut up = place.up();
    up.until("stops everything");

    let second = place.up_command().output().unwrap();

    let told = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        told.contains("Hothouse runs already in") && told.contains("`hothouse down`"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(place.servers().into_iter().all(is_alive));
}

#[test]
fn a_taken_port_is_told_before_anything_is_started() {
    let place = Place::new();
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, place.port)).unwrap();

    let up = place.up_command().output().unwrap();

    let told = text(&up.stderr);
    assert_eq!(up.status.code(), Some(1));
    assert!(
        told.contains("is in use by another program") && told.contains("--listen"),
        "{told}"
    );
    assert!(!place.folder.join("postgres").exists());
}

#[test]
fn a_broken_database_is_told_in_one_sentence_and_nothing_stays_behind() {
    let place = Place::new();
    fs::create_dir_all(place.folder.join("postgres/data")).unwrap();

    let up = place.up_command().output().unwrap();

    let told = text(&up.stderr);
    assert_eq!(up.status.code(), Some(1));
    assert!(
        told.contains("is no Postgres database any more") && told.contains("move it away"),
        "{told}"
    );
    assert_eq!(place.pid("redis/redis.pid").map(is_alive), None);
}
