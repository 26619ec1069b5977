//! A witness outside of Hothouse: the kernel's list of processes, which shows those in sandboxes too.
//!
//! Each job's program has the job's token in its command line, and each sandbox has a namespace of processes of its own.
//! The witness notes when each was certainly there, first and last. When its process began is no answer to the first: a
//! process of init waits before it becomes the program. Two sandboxes of one job whose spans overlap ran at the same time,
//! whatever Hothouse believes; a short overlap between two looks may be missed, but none is made up.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::history::Sighting;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The kernel's clock ticks in a second, as it shows them.
const TICKS: f64 = 100.0;

/// By the process and when it began: numbers of processes, and of sandboxes, are used again.
type Sightings = HashMap<(u32, String), Sighting>;

/// See the module.
pub(super) struct Witness {
    seen: Arc<Mutex<Sightings>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Watches for programs whose token begins with this.
    pub(super) fn start(prefix: String) -> Self {
        let (seen, is_over) = (Arc::<Mutex<Sightings>>::default(), Arc::new(AtomicBool::new(false)));
        let (shared, stop) = (Arc::clone(&seen), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                look(&prefix, &mut shared.lock().unwrap_or_else(PoisonError::into_inner));
                std::thread::sleep(LOOK);
            }
        });
        Self {
            seen,
            is_over,
            thread: Some(thread),
        }
    }

    /// What it saw.
    pub(super) fn sightings(&self) -> Vec<Sighting> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn look(prefix: &str, seen: &mut Sightings) {
    // Before the look: what was found before, and is found again, was there at this time.
    let now = uptime();
    for (pid, program) in programs(prefix) {
        let key = (pid, format!("{} {}", program.token, program.began));
        let first = uptime();
        let sighting = seen.entry(key).or_insert(Sighting {
            began: first,
            seen: first,
            ..program
        });
        sighting.seen = sighting.seen.max(now);
    }
}

/// Programs with such a token, each with its process's number.
pub(super) fn programs(prefix: &str) -> Vec<(u32, Sighting)> {
    let own = namespace(Path::new("/proc/self"));
    let mut found = Vec::new();
    for (path, line) in commands() {
        let Some(token) = line
            .split(|byte| *byte == 0)
            .find(|word| word.starts_with(prefix.as_bytes()))
        else {
            continue;
        };
        let pid = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let (Some(pid), Some(began), Some(sandbox)) = (pid, began(&path), namespace(&path)) else {
            continue;
        };
        if Some(sandbox) != own {
            let sighting = Sighting {
                token: String::from_utf8_lossy(token).into_owned(),
                sandbox,
                began,
                seen: began,
            };
            found.push((pid, sighting));
        }
    }
    found
}

/// Every process's folder and command line.
pub(super) fn commands() -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    processes
        .filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((entry.path(), line))
        })
        .collect()
}

/// The namespace of processes that a process is in.
fn namespace(process: &Path) -> Option<u64> {
    fs::metadata(process.join("ns/pid")).ok().map(|data| data.ino())
}

/// When a living process began, seconds since the machine did.
fn began(process: &Path) -> Option<f64> {
    let fields = stat(process)?;
    if fields.first().is_some_and(|state| state == "Z" || state == "X") {
        return None;
    }
    fields.get(19)?.parse::<f64>().ok().map(|ticks| ticks / TICKS)
}

/// The fields of a process's `stat` from its state on.
pub(super) fn stat(process: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // Its name may hold anything; nothing after it holds a parenthesis.
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Seconds since the machine began.
pub(super) fn uptime() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
