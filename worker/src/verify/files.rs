//! Files that go in or out and mean something else.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tar::EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};

use super::bench::{Bench, Error, python, shell, still_serves};
use super::{Attempt, Group, Verdict};
use crate::sandbox::{self, GetFiles, PutFiles, RunSpec, Sandbox, TextFile};

const LONG: Duration = Duration::from_secs(30);

/// The attempts.
pub(super) const ATTEMPTS: &[Attempt] = &[
    file("climb out of the workspace", |b| {
        refused(b, || tar(&[(Regular, "a/../../tmp/evil", "", b"x")])).boxed()
    }),
    file("name an absolute path", |b| {
        refused(b, || tar(&[(Regular, "/tmp/evil", "", b"x")])).boxed()
    }),
    file("link out of the workspace", |b| {
        refused(b, || tar(&[(Symlink, "l", "/tmp", b"")])).boxed()
    }),
    file("link out by climbing", |b| {
        refused(b, || tar(&[(Symlink, "a/l", "../../tmp", b"")])).boxed()
    }),
    file("write through a link of the archive", |b| {
        refused(b, || {
            tar(&[
                (Directory, "d", "", b""),
                (Symlink, "l", "d", b""),
                (Regular, "l/evil", "", b"x"),
            ])
        })
        .boxed()
    }),
    file("link hard to a file outside", |b| {
        refused(b, || tar(&[(Link, "l", "/etc/passwd", b"")])).boxed()
    }),
    file("link hard by climbing", |b| {
        refused(b, || tar(&[(Link, "l", "../etc/passwd", b"")])).boxed()
    }),
    file("bring a pipe", |b| refused(b, || tar(&[(Fifo, "f", "", b"")])).boxed()),
    file("bring a character device", |b| {
        refused(b, || tar(&[(Char, "c", "", b"")])).boxed()
    }),
    file("bring a disk", |b| refused(b, || tar(&[(Block, "b", "", b"")])).boxed()),
    file("send rubbish for an archive", |b| refused(b, || vec![7; 2_000]).boxed()),
    file("send half an archive", |b| {
        refused(b, || tar(&[(Regular, "a", "", &[1; 5_000])])[..3_000].to_vec()).boxed()
    }),
    file("say another size than there is", |b| refused(b, wrong_size).boxed()),
    file("name a path of ten thousand folders", |b| refused(b, deep).boxed()),
    file("name a file longer than names may be", |b| {
        refused(b, || tar(&[(Regular, LONG_NAME, "", b"x")])).boxed()
    }),
    file("bring more files than allowed", |b| {
        refused(b, || tar(&vec![(Regular, "x", "", b"" as &[u8]); 101])).boxed()
    }),
    file("bring more bytes than allowed", |b| {
        refused(b, || tar(&[(Regular, "x", "", &vec![0; 2 << 20])])).boxed()
    }),
    file("keep a set-user-id bit", |b| set_user_id(b).boxed()),
    file("write through a link that is there", |b| through_a_link(b).boxed()),
    file("put the program itself elsewhere", |b| program_elsewhere(b).boxed()),
    file("fetch a file by a link", |b| {
        fetches(b, "ln -s /etc/passwd x; ln -s /proc/self/environ y", "*").boxed()
    }),
    file("fetch a file through a linked folder", |b| {
        fetches(b, "ln -s /etc d", "d/*").boxed()
    }),
    file("fetch by climbing", |b| fetches(b, "true", "../etc/*").boxed()),
    file("fetch an absolute path", |b| fetches(b, "true", "/etc/passwd").boxed()),
    file("fetch a pipe that nobody writes to", |b| {
        fetches(b, "mkfifo pipe", "*").boxed()
    }),
    file("fetch a socket", |b| {
        fetches(
            b,
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'",
            "*",
        )
        .boxed()
    }),
    file("fetch a file of a terabyte", |b| terabyte(b).boxed()),
    file("exchange a file for a link while it is fetched", |b| {
        exchanges(b).boxed()
    }),
];

const LONG_NAME: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";

const fn file(name: &'static str, act: super::HostAttempt) -> Attempt {
    Attempt::host(Group::Files, name, act)
}

type Entry<'a> = (tar::EntryType, &'a str, &'a str, &'a [u8]);

fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (kind, path, link, content) in entries {
        if path.len() > 100 {
            append(
                &mut archive,
                *b"././@LongLink\0",
                tar::EntryType::GNULongName,
                "",
                path.as_bytes(),
            );
        }
        let short = &path.as_bytes()[..path.len().min(100)];
        append(&mut archive, short, *kind, link, content);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// An entry as it is, since libraries refuse to write what these are about.
fn append(archive: &mut Vec<u8>, name: impl AsRef<[u8]>, kind: tar::EntryType, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6755);
    header.set_size(content.len() as u64);
    let name = name.as_ref();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn wrong_size() -> Vec<u8> {
    let mut archive = Vec::new();
    append(
        &mut archive,
        b"pax",
        tar::EntryType::XHeader,
        "",
        b"20 size=99999999999\n",
    );
    append(&mut archive, b"x", Regular, "", b"short");
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn deep() -> Vec<u8> {
    tar(&[(Regular, &"d/".repeat(10_000), "", b"x")])
}

fn small() -> PutFiles {
    PutFiles {
        dest: "case".to_owned(),
        entries_max: 100,
        bytes_max: 1 << 20,
        ..PutFiles::default()
    }
}

async fn refused(bench: &Bench, archive: impl FnOnce() -> Vec<u8> + Send) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let verdict = match sandbox.put_files(archive(), small()).await {
        Err(sandbox::Error::Files { reason }) => Verdict::Held(reason),
        Err(error) => return Ok(Verdict::Broken(format!("it ended the sandbox: {error}"))),
        Ok(report) => Verdict::Broken(format!("{} entries were written", report.entries)),
    };
    let outside = shell(&sandbox, "ls -d /tmp/evil 2>/dev/null", LONG).await?.stdout;
    if !outside.is_empty() {
        return Ok(Verdict::Broken("a file was written outside".to_owned()));
    }
    serving(&sandbox, verdict).await
}

async fn serving(sandbox: &Sandbox, verdict: Verdict) -> Result<Verdict, Error> {
    Ok(match still_serves(sandbox).await {
        Ok(()) => verdict,
        Err(why) => Verdict::Broken(why),
    })
}

async fn set_user_id(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    sandbox
        .put_files(tar(&[(Regular, "x", "", b"x")]), PutFiles::default())
        .await?;
    let mode = shell(&sandbox, "stat -c %a x", LONG).await?.stdout;
    Ok(match mode.trim() {
        "755" => Verdict::Held("it was dropped".to_owned()),
        mode => Verdict::Broken(format!("the file's mode is {mode}")),
    })
}

async fn through_a_link(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    shell(&sandbox, "ln -s /tmp trap; ln -s /tmp/evil file", LONG).await?;
    let through = sandbox
        .put_files(tar(&[(Regular, "trap/evil", "", b"x")]), PutFiles::default())
        .await;
    let replaced = sandbox
        .put_files(tar(&[(Regular, "file", "", b"x")]), PutFiles::default())
        .await;
    let seen = shell(&sandbox, "ls /tmp; stat -c %F file", LONG).await?.stdout;
    Ok(match (through, replaced) {
        (Err(_), Ok(_)) if seen == "regular file\n" => Verdict::Held("links are replaced, never followed".to_owned()),
        (through, replaced) => Verdict::Broken(format!("{through:?} {replaced:?} {seen:?}")),
    })
}

async fn program_elsewhere(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    shell(&sandbox, "ln -s /tmp trap", LONG).await?;
    let mut went_through = Vec::new();
    for path in ["../evil", "/tmp/evil", "trap/evil", "a/../../tmp/evil", ""] {
        let spec = RunSpec {
            files: vec![TextFile {
                path: path.to_owned(),
                text: "x".to_owned(),
            }],
            ..RunSpec::new(["/bin/true"])
        };
        if let Ok(running) = sandbox.run(spec).await {
            drop(running.wait().await);
            went_through.push(path);
        }
    }
    Ok(if went_through.is_empty() {
        Verdict::Held("each was refused".to_owned())
    } else {
        Verdict::Broken(format!("{went_through:?}"))
    })
}

/// Nothing may come out but what is a file of the workspace itself.
async fn fetches(bench: &Bench, prepare: &str, glob: &str) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    shell(&sandbox, prepare, LONG).await?;
    let verdict = match sandbox.get_files(GetFiles::matching([glob])).await {
        Ok(files) if files.report.files.is_empty() => Verdict::Held("nothing came".to_owned()),
        Ok(files) => Verdict::Broken(format!("{:?} came", files.report.files)),
        Err(sandbox::Error::Files { reason }) => Verdict::Held(reason),
        Err(error) => Verdict::Broken(format!("it ended the sandbox: {error}")),
    };
    serving(&sandbox, verdict).await
}

async fn terabyte(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    shell(&sandbox, "truncate -s 1T sparse; echo small > small", LONG).await?;
    let verdict = match sandbox.get_files(GetFiles::matching(["*"])).await {
        Ok(files) if files.report.incomplete && files.archive.len() < 1 << 20 => {
            Verdict::Held("left out, and that is told".to_owned())
        }
        Ok(files) => Verdict::Broken(format!(
            "{} bytes came, told whole: {}",
            files.archive.len(),
            !files.report.incomplete
        )),
        Err(error) => Verdict::Unclear(error.to_string()),
    };
    serving(&sandbox, verdict).await
}

/// A program that exchanges a file for a link, again and again, while it is fetched: what comes is never the link's.
async fn exchanges(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let code = "import os\nwhile True:\n  open('x', 'w').write('mine'); os.unlink('x'); os.symlink('/etc/passwd', 'x'); os.unlink('x')";
    let swapping = python(&sandbox, code, Duration::from_secs(2));
    let fetching = async {
        let mut rounds = 0;
        for _ in 0..40 {
            let files = sandbox.get_files(GetFiles::matching(["x"])).await?;
            if holds(&files.archive, b"root:") {
                return Ok(Verdict::Broken("the link's target came".to_owned()));
            }
            rounds += 1;
        }
        Ok(Verdict::Held(format!("{rounds} fetches, never the link's target")))
    };
    let (swapped, fetched): (_, Result<Verdict, Error>) = tokio::join!(swapping, fetching);
    swapped?;
    fetched
}

fn holds(archive: &Bytes, needle: &[u8]) -> bool {
    archive.windows(needle.len()).any(|window| window == needle)
}
