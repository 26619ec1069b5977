//! From one job to another.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::bench::{Bench, Error, python, shell, still_serves};
use super::{Attempt, Group, Probe, Verdict};

/// One program in a sandbox that another one of the same user had before.
macro_rules! after {
    ($name:expr, $before:expr, $look:expr) => {
        cross($name, |bench| reused(bench, $before, $look).boxed())
    };
}

const LONG: Duration = Duration::from_secs(30);

/// What a fresh sandbox must not hold.
pub(super) const PROBES: &[Probe] = &[
    Probe::new(
        "find files of the job before",
        "found = [os.path.join(d, f) for top in ('/workspace', '/tmp', '/dev/shm', '/var/tmp', '/run') for d, _, files in os.walk(top) for f in files]\nif found: broken(found)\nheld('there is none')",
    ),
    Probe::new(
        "find folders of the job before",
        "found = os.listdir('/workspace') + os.listdir('/tmp')\nif found: broken(found)\nheld('there is none')",
    ),
    Probe::new(
        "find segments of memory of the job before",
        "found = open('/proc/sysvipc/shm').read().splitlines()[1:] + open('/proc/sysvipc/sem').read().splitlines()[1:] + open('/proc/sysvipc/msg').read().splitlines()[1:]\nif found: broken(found)\nheld('there is none')",
    ),
    Probe::new(
        "find connections of the job before",
        "found = open('/proc/net/tcp').read().splitlines()[1:] + open('/proc/net/udp').read().splitlines()[1:]\nlisten = [l for l in found if l.split()[3] == '0A']\nif len(found) > len(listen): broken(found)\nheld('there is none')",
    ),
    Probe::new(
        "find a history of the job before",
        "home = os.path.expanduser('~')\nfound = glob.glob(home + '/.*history') + glob.glob(home + '/.cache/*')\nif found: broken(found)\nheld('there is none')",
    ),
];

/// What one sandbox must not see or reach of another that runs beside it.
pub(super) const ATTEMPTS: &[Attempt] = &[
    cross("read a file of another job", |b| {
        beside(
            b,
            "open('/tmp/secret', 'w').write('mine')",
            "open('/tmp/secret').read()",
        )
        .boxed()
    }),
    cross("read the workspace of another job", |b| {
        beside(
            b,
            "open('/workspace/secret', 'w').write('mine')",
            "open('/workspace/secret').read()",
        )
        .boxed()
    }),
    cross("read the shared memory of another job", |b| {
        beside(
            b,
            "open('/dev/shm/secret', 'w').write('mine')",
            "open('/dev/shm/secret').read()",
        )
        .boxed()
    }),
    cross("attach a segment of another job", |b| {
        beside(
            b,
            "checked(libc.shmget(4711, 4096, 0o1666))",
            "checked(libc.shmget(4711, 4096, 0o666))",
        )
        .boxed()
    }),
    cross("take a message of another job", |b| {
        beside(
            b,
            "checked(libc.msgget(4711, 0o1666))",
            "checked(libc.msgget(4711, 0o666))",
        )
        .boxed()
    }),
    cross("connect to a port of another job", |b| {
        beside(
            b,
            "global s; s = socket.create_server(('127.0.0.1', 47110))",
            "connects(('127.0.0.1', 47110))",
        )
        .boxed()
    }),
    cross("connect to a socket without a file of another job", |b| {
        beside(
            b,
            "global s; s = socket.socket(socket.AF_UNIX); s.bind('\\0hothouse-verify'); s.listen()",
            "s = socket.socket(socket.AF_UNIX); s.connect('\\0hothouse-verify')",
        )
        .boxed()
    }),
    cross("see a process of another job", |b| {
        beside(b, "open('/proc/self/comm', 'w').write('hothouse-mark')", "names = [open(p).read().strip() for p in glob.glob('/proc/[0-9]*/comm')]\nif 'hothouse-mark' in names: broken(names)\nheld('%d processes, none of the other' % len(names))").boxed()
    }),
    cross("signal a process of another job", |b| {
        beside(b, "pass", "seen = 0\nfor pid in range(2, 5000):\n  if pid == os.getpid(): continue\n  try: os.kill(pid, 0); seen += 1\n  except (ProcessLookupError, PermissionError): pass\nif seen: broken(seen)\nheld('there is nobody')").boxed()
    }),
    cross("lock a program that all share", |b| {
        beside(b, "global f; f = open('/usr/bin/env', 'rb'); fcntl.flock(f, fcntl.LOCK_EX)", "f = open('/usr/bin/env', 'rb')\ntry: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: held('seen, as on every machine that shares its programs: see docs/security.md')\nheld('not seen')").boxed()
    }),
    after!(
        "find a file of the job before after a reset",
        "os.makedirs('.a/b'); open('.a/b/c', 'w').write('mine'); os.chmod('.a', 0)",
        NO_FILES
    ),
    after!(
        "find a temporary file of the job before after a reset",
        "open('/tmp/secret', 'w').write('mine'); os.symlink('/workspace', '/tmp/link')",
        NO_FILES
    ),
    after!(
        "find shared memory of the job before after a reset",
        "open('/dev/shm/secret', 'w').write('mine')",
        NO_FILES
    ),
    after!(
        "find a segment of the job before after a reset",
        "checked(libc.shmget(4711, 4096, 0o1666))",
        "checked(libc.shmget(4711, 4096, 0o666))"
    ),
    after!(
        "find semaphores of the job before after a reset",
        "checked(libc.semget(4711, 1, 0o1666))",
        "checked(libc.semget(4711, 1, 0o666))"
    ),
    after!(
        "find a message of the job before after a reset",
        "checked(libc.msgget(4711, 0o1666))",
        "checked(libc.msgget(4711, 0o666))"
    ),
    after!(
        "find a named queue of the job before after a reset",
        "r = ctypes.CDLL('librt.so.1', use_errno=True); fd = r.mq_open(b'/secret', 0o102, 0o600, None)",
        "r = ctypes.CDLL('librt.so.1', use_errno=True); fd = r.mq_open(b'/secret', 2)\nif fd >= 0: broken(fd)\nheld('there is none: ' + os.strerror(ctypes.get_errno()))"
    ),
    after!(
        "find a process of the job before after a reset",
        "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: open('/proc/self/comm', 'w').write('hothouse-mark'); time.sleep(1000)\n  os._exit(0)",
        "names = [open(p).read().strip() for p in glob.glob('/proc/[0-9]*/comm')]\nif 'hothouse-mark' in names: broken(names)\nheld('%d processes, none of the other' % len(names))"
    ),
    after!(
        "find an attribute of the job before after a reset",
        "try: os.setxattr('/workspace', 'user.secret', b'mine')\nexcept OSError: pass",
        "try: names = os.listxattr('/workspace')\nexcept OSError: names = []\nif names: broken(names)\nheld('there is none')"
    ),
    after!(
        "find a connection of the job before after a reset",
        "s = socket.create_server(('127.0.0.1', 47111)); c = socket.create_connection(('127.0.0.1', 47111)); a, _ = s.accept(); c.close(); a.close()",
        "found = [l for l in open('/proc/net/tcp').read().splitlines()[1:] if l.split()[3] != '0A']\nif found: broken(found)\nheld('there is none')"
    ),
    after!(
        "find the mode that the job before gave a folder after a reset",
        "os.chmod('/workspace', 0o711) if os.stat('/workspace').st_uid == os.getuid() else None",
        "found = os.stat('/workspace')\nif found.st_mode & 0o777 == 0o711: broken(oct(found.st_mode))\nheld('its mode is as it was')"
    ),
    cross("survive the end of its sandbox", |b| survives(b).boxed()),
    cross("be stopped by a neighbour's load", |b| loaded(b).boxed()),
];

/// What looks for files where a job can leave some.
const NO_FILES: &str = "found = [os.path.join(d, f) for top in ('/workspace', '/tmp', '/dev/shm') for d, folders, files in os.walk(top) for f in folders + files]\nif found: broken(found)\nheld('there is none')";

const fn cross(name: &'static str, act: super::HostAttempt) -> Attempt {
    Attempt::host(Group::CrossJob, name, act)
}

/// `before` runs in a sandbox, and `look` in the same one after its reset; one that cannot be reset is thrown away.
async fn reused(bench: &Bench, before: &str, look: &'static str) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let left = format!("{before}\nheld('left')");
    let spec = crate::sandbox::RunSpec {
        env: vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())],
        ..crate::sandbox::RunSpec::new(["python3", "-c", super::PRELUDE, &left])
    };
    let mut running = sandbox.run(spec).await?;
    let mut said = Vec::new();
    while let Some(output) = running.next().await {
        if let crate::sandbox::Output::Stdout(data) = output {
            said.extend_from_slice(&data);
        }
    }
    drop(running);
    if said != b"HELD left\n" {
        let said = String::from_utf8_lossy(&said).into_owned();
        return Err(Error::Setup(format!("the job before left nothing: {said}")));
    }
    match sandbox.reset().await {
        Ok(()) => {
            let verdicts = super::probe::run(&sandbox, &[&Probe::new("after", look)]).await?;
            let none = || Verdict::Unclear("it said nothing".to_owned());
            Ok(verdicts.into_iter().next().unwrap_or_else(none))
        }
        Err(crate::sandbox::Error::Files { reason }) => Ok(Verdict::Held(format!("it is thrown away: {reason}"))),
        Err(error) => Err(error.into()),
    }
}

/// `victim` runs and waits in one sandbox while `thief` runs in another.
async fn beside(bench: &Bench, victim: &str, thief: &'static str) -> Result<Verdict, Error> {
    let first = bench.sandbox().await?;
    let lines = format!(
        "def here():\n  {}\nhere(); print('READY', flush=True); time.sleep(1000)",
        victim.replace('\n', "\n  ")
    );
    let spec = crate::sandbox::RunSpec {
        env: vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())],
        ..crate::sandbox::RunSpec::new(["python3", "-c", super::PRELUDE, &lines])
    };
    let mut running = first.run(spec).await?;
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains("READY") {
        match running.next().await {
            Some(crate::sandbox::Output::Stdout(data)) => said.extend_from_slice(&data),
            Some(_) => {}
            None => {
                return Err(Error::Setup(format!(
                    "the victim ended: {}",
                    String::from_utf8_lossy(&said)
                )));
            }
        }
    }
    let verdict = bench.probe(&Probe::new("beside", thief)).await?;
    Ok(verdict)
}

async fn survives(bench: &Bench) -> Result<Verdict, Error> {
    let sandbox = bench.sandbox().await?;
    let mark = format!("hothouse-verify-{}", uuid::Uuid::now_v7().simple());
    let script = format!("setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 0.1; done' {mark} & echo $!");
    let spec = crate::sandbox::RunSpec {
        env: vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())],
        ..crate::sandbox::RunSpec::new(["sh", "-c", &format!("{script}; sleep 1000")])
    };
    let mut running = sandbox.run(spec).await?;
    running.next().await;
    let is_there = || {
        std::fs::read_dir("/proc").is_ok_and(|all| {
            all.flatten().any(|entry| {
                std::fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&mark))
            })
        })
    };
    if !is_there() {
        return Err(Error::Setup("its process cannot be seen from here".to_owned()));
    }
    drop(running);
    drop(sandbox);
    let ended = std::time::Instant::now();
    while ended.elapsed() < Duration::from_secs(5) {
        if !is_there() {
            return Ok(Verdict::Held(format!("gone after {} ms", ended.elapsed().as_millis())));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(Verdict::Broken("its process runs on".to_owned()))
}

async fn loaded(bench: &Bench) -> Result<Verdict, Error> {
    let (noisy, quiet) = tokio::try_join!(bench.sandbox(), bench.sandbox())?;
    let bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass";
    let load = python(&noisy, bomb, Duration::from_secs(3));
    let work = async {
        let begun = std::time::Instant::now();
        let done = shell(
            &quiet,
            "i=0; while [ $i -lt 20 ]; do /bin/true; i=$((i+1)); done; echo done",
            LONG,
        )
        .await?;
        Ok::<_, Error>((done.stdout, begun.elapsed()))
    };
    let (loaded, worked) = tokio::join!(load, work);
    let (said, took) = worked?;
    loaded?;
    let verdict = if said == "done\n" {
        Verdict::Held(format!("20 programs in {} ms beside a fork bomb", took.as_millis()))
    } else {
        Verdict::Broken(format!("its neighbour could not work: {said:?}"))
    };
    Ok(match still_serves(&noisy).await {
        Ok(()) => verdict,
        Err(why) => Verdict::Broken(why),
    })
}
