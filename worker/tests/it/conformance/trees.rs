//! Whole trees out of a sandbox and into one again, as workspaces go: nothing is lost, whatever a job left there.

use std::time::Instant;

use worker::driver::{Profile, Spec};
use worker::sandbox::{GetFiles, PutFiles, Sandbox};

use super::{Subject, python, run, sh};

/// Prints a tree, an entry a line: name, kind, permissions, size, time, content or target.
const DESCRIBE: &str = r#"
import hashlib, os, stat, sys
def describe(at, path):
    for name in sorted(os.listdir(at)):
        here, shown = os.path.join(at, name), os.path.join(path, name)
        found = os.lstat(here)
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISDIR(found.st_mode):
            print(shown, "folder", oct(mode))
            os.chmod(here, 0o700)
            describe(here, shown)
            os.chmod(here, mode)
        elif stat.S_ISLNK(found.st_mode):
            print(shown, "link", os.readlink(here))
        elif stat.S_ISREG(found.st_mode):
            os.chmod(here, 0o600)
            with open(here, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
            os.chmod(here, mode)
            print(shown, "file", oct(mode), found.st_size, int(found.st_mtime), content)
describe(os.fsencode(sys.argv[1]), b"")
"#;

const MAKE: &str = r#"
import os, socket
os.mkdir("from")
os.chdir("from")
def put(name, content=b"content", mode=0o644, at=1_000_000_000):
    with open(name, "wb") as file:
        file.write(content)
    os.chmod(name, mode)
    os.utime(name, (at, at))
put("plain")
put("empty", b"")
for mode in (0o000, 0o200, 0o641, 0o777):
    put("mode-%o" % mode, mode=mode)
for at in (0, 1, 2**31, 2**33 - 1):
    put("at-%d" % at, at=at)
# Two names of one file, a third in another folder: of a size of which only one fits in.
put("one", os.urandom(6 << 20))
os.link("one", "other")
os.makedirs("far/away")
os.link("one", "far/away/third")
# Of eight megabytes, and almost nothing on the disk.
with open("sparse", "wb") as file:
    file.write(b"begin")
    file.seek(4 << 20)
    file.write(b"middle")
    file.truncate(8 << 20)
os.utime("sparse", (5, 5))
for name in (b"n" * 255, "ä".encode() * 127, b"\xff\xfe not text", b"line\nbreak", b"-rf", b" ", b".hidden", b"back\\slash"):
    put(name)
deep = "/".join("%03d" % n for n in range(127))
os.makedirs(deep)
put(deep + "/bottom")
os.makedirs("hollow/within")
for name, mode in (("shut", 0o000), ("listed", 0o400), ("passed", 0o300), ("fixed", 0o500)):
    os.mkdir(name)
    put(name + "/inside", mode=0o400)
    os.mkdir(name + "/below")
    os.chmod(name, mode)
for target in ("plain", "/etc/passwd", "../../../..", "nowhere", "far", "x" * 1000):
    os.symlink(target, "to-" + target.replace("/", "_")[:20])
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
"#;

async fn described(sandbox: &Sandbox, folder: &str) -> String {
    let script = format!("import sys; sys.argv = ['', {folder:?}]\n{DESCRIBE}");
    let done = run(sandbox, python(&script)).await;
    assert!(done.exit.is_success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.text()
}

fn everything(profile: &Profile) -> GetFiles {
    GetFiles::everything(profile.workspace_bytes, 200_000)
}

fn whole() -> PutFiles {
    PutFiles {
        entries_max: 200_000,
        outside_links: true,
        ..PutFiles::default()
    }
}

pub(crate) async fn a_tree_comes_back_as_it_was(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    let done = run(&sandbox, python(MAKE)).await;
    assert!(done.exit.is_success(), "{}", String::from_utf8_lossy(&done.stderr));
    let before = described(&sandbox, "from").await;
    let tree = GetFiles {
        root: "from".to_owned(),
        ..everything(&subject.profile)
    };
    let files = sandbox.get_files(tree).await.unwrap();
    assert!(!files.report.incomplete, "{:?}", files.report);
    assert_eq!(described(&sandbox, "from").await, before, "packing changes nothing");

    let other = subject.sandbox().await;
    let put = PutFiles {
        dest: "to".to_owned(),
        ..whole()
    };
    let archive = files.archive;
    let report = other.put_files(archive.clone(), put).await.unwrap();
    assert_eq!(report.entries, files.report.entries);
    let after = described(&other, "to").await;
    for (then, now) in before.lines().zip(after.lines()) {
        assert_eq!(then, now);
    }
    assert_eq!(before.lines().count(), after.lines().count());
    assert!(before.lines().count() > 160, "{before}");
    let look = "du -k to/sparse | cut -f1; stat -c %h to/one to/other to/far/away/third";
    let text = run(&other, sh(look)).await.text();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers[0] <= 64, "a hole takes no room: {numbers:?}");
    assert_eq!(numbers[1..], [3; 3], "one file with three names");
    let tree = GetFiles {
        root: "to".to_owned(),
        ..everything(&subject.profile)
    };
    let again = other.get_files(tree).await.unwrap();
    assert!(again.archive == archive, "the same files are the same archive");
}

pub(crate) async fn what_is_too_deep_or_too_long_is_told(subject: &Subject) {
    let sandbox = subject.sandbox().await;
    for script in [
        "import os; os.makedirs('/'.join(['d'] * 128)); open('/'.join(['d'] * 128) + '/x', 'w')",
        "import os\nfor n in range(20): os.mkdir('n' * 250); os.chdir('n' * 250)\nopen('x', 'w')",
    ] {
        assert!(run(&sandbox, python(script)).await.exit.is_success());
        let files = sandbox.get_files(everything(&subject.profile)).await.unwrap();
        assert!(files.report.incomplete, "{script}");
        assert!(run(&sandbox, sh("rm -rf d n*")).await.exit.is_success());
    }
    let files = sandbox.get_files(everything(&subject.profile)).await.unwrap();
    assert!(!files.report.incomplete, "{:?}", files.report);
}

pub(crate) async fn a_hundred_thousand_small_files_come_back(subject: &Subject) {
    let profile = Profile::default();
    let spec = || Spec {
        profile: profile.clone(),
        ..subject.spec()
    };
    let sandbox = subject.sandbox_of(spec()).await;
    let make = "import os\nfor folder in range(100):\n  os.mkdir(str(folder))\n  for file in range(1000):\n    \
                open(f'{folder}/{file}', 'w').write(f'{folder} {file}')";
    assert!(run(&sandbox, python(make)).await.exit.is_success());
    let begun = Instant::now();
    let files = sandbox.get_files(everything(&profile)).await.unwrap();
    let packed = begun.elapsed();
    assert_eq!((files.report.entries, files.report.incomplete), (100_100, false));
    drop(sandbox);
    let other = subject.sandbox_of(spec()).await;
    let begun = Instant::now();
    let report = other.put_files(files.archive, whole()).await.unwrap();
    show(&format!(
        "100,000 files: packed in {packed:?}, unpacked in {:?}",
        begun.elapsed()
    ));
    assert_eq!((report.entries, report.bytes), (100_100, files.report.bytes));
    let look = "cat 0/0 57/123 99/999; ls | wc -l; find . -type f | wc -l";
    assert_eq!(run(&other, sh(look)).await.text(), "0 057 12399 999100\n100000");
}

#[expect(clippy::print_stderr, reason = "what a large tree cost")]
fn show(text: &str) {
    eprintln!("{text}");
}
