//! Attempts that are a program in the sandbox.

use crate::sandbox::{Output, RunSpec, Sandbox};

use super::{Error, Verdict, escape, network};

/// A few lines of Python that try something. An `OSError` means that the system refused it; `held(why)` and
/// `broken(what)` say it themselves; running through is a success of the attempt.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// What it tries, for a person.
    pub name: &'static str,
    /// Whether it is quick and harmless enough for every start of a pool.
    pub is_cheap: bool,
    /// The lines.
    pub code: &'static str,
}

impl Probe {
    pub(super) const fn new(name: &'static str, code: &'static str) -> Self {
        Self {
            name,
            is_cheap: false,
            code,
        }
    }

    pub(super) const fn cheap(name: &'static str, code: &'static str) -> Self {
        Self {
            name,
            is_cheap: true,
            code,
        }
    }
}

/// What the lines of a probe find around them. Each further argument of the program is a probe; one line is printed
/// for each. A probe that ends the program leaves no line, which is no proof.
pub const PRELUDE: &str = r"
import ctypes, errno, fcntl, glob, json, mmap, os, platform, resource, select, signal, socket, stat, struct, subprocess, sys, threading, time
INHERITED = [fd for fd in range(3, 256) if os.path.exists('/proc/self/fd/%d' % fd)]
class Said(Exception): pass
def held(why): raise Said('HELD ' + str(why))
def broken(what): raise Said('BROKEN ' + str(what))
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
X86 = dict(process_vm_readv=310, process_vm_writev=311, pidfd_open=434, pidfd_getfd=438, pidfd_send_signal=424, prlimit64=302,
    clone3=435, open_by_handle_at=304, bpf=321, userfaultfd=323, perf_event_open=298, io_uring_setup=425, add_key=248,
    keyctl=250, init_module=175, delete_module=176, kexec_load=246, reboot=169, swapoff=168, clock_settime=227,
    acct=163, quotactl=179, fanotify_init=300, ioprio_set=251, move_pages=279, clone=56, setns=308, iopl=172,
    adjtimex=159, mount_setattr=442, fsopen=430, open_tree=428, move_mount=429, kcmp=312, vhangup=153, nfsservctl=180,
    syslog=103, sethostname=170, setdomainname=171, pivot_root=155, unshare=272, memfd_secret=447)
ARM = dict(process_vm_readv=270, process_vm_writev=271, pidfd_open=434, pidfd_getfd=438, pidfd_send_signal=424, prlimit64=261,
    clone3=435, open_by_handle_at=265, bpf=280, userfaultfd=282, perf_event_open=241, io_uring_setup=425, add_key=217,
    keyctl=219, init_module=105, delete_module=106, kexec_load=104, reboot=142, swapoff=225, clock_settime=112,
    acct=89, quotactl=60, fanotify_init=262, ioprio_set=30, move_pages=239, clone=220, setns=268, iopl=-1,
    adjtimex=171, mount_setattr=442, fsopen=430, open_tree=428, move_mount=429, kcmp=272, vhangup=58, nfsservctl=42,
    syslog=116, sethostname=161, setdomainname=162, pivot_root=41, unshare=97, memfd_secret=447)
def call(name, *args):
    number = (X86 if platform.machine() == 'x86_64' else ARM)[name]
    return checked(libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args]))
def write(path, text):
    # Without a buffer: an error of a buffered write shows only when nobody looks any more.
    with open(path, 'wb', buffering=0) as f: f.write(text.encode())
def in_child(do):
    pid = os.fork()
    if pid == 0:
        try:
            do()
            os._exit(0)
        except OSError as e:
            os._exit(e.errno & 127 or 1)
    return os.waitpid(pid, 0)[1]
def connects(address, kind=socket.SOCK_STREAM, family=socket.AF_INET):
    with socket.socket(family, kind) as s:
        s.settimeout(1.5)
        s.connect(address)
        if kind == socket.SOCK_DGRAM:
            s.send(b'\0' * 12)
            s.recv(1)
def attempt(code):
    try:
        exec(code, globals())
        return 'BROKEN it went through'
    except Said as said:
        return str(said)
    except OSError as e:
        return 'HELD ' + str(e)
    except BaseException as e:
        return 'UNCLEAR %s: %s' % (type(e).__name__, e)
for code in sys.argv[1:]:
    line = attempt(code)
    print(' '.join(line.split())[:300], flush=True)
";

/// Runs programs of probes in one sandbox: a verdict for each.
pub(super) async fn run(sandbox: &Sandbox, probes: &[&Probe]) -> Result<Vec<Verdict>, Error> {
    let argv = ["python3", "-c", PRELUDE]
        .into_iter()
        .chain(probes.iter().map(|probe| probe.code));
    let path = ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned());
    let spec = RunSpec {
        env: vec![path],
        ..RunSpec::new(argv)
    };
    let mut running = sandbox.run(spec).await?;
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    while let Some(output) = running.next().await {
        match output {
            Output::Stdout(data) => said.extend_from_slice(&data),
            Output::Stderr(data) => complained.extend_from_slice(&data),
            Output::Cut { .. } => {}
        }
    }
    let exit = running.wait().await?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut lines = said.lines();
    let verdict = |_probe: &&Probe| {
        lines.next().map_or_else(
            || {
                let last = String::from_utf8_lossy(&complained);
                let last = last.lines().last().unwrap_or_default().to_owned();
                Verdict::Unclear(format!(
                    "it said nothing: code {:?}, signal {:?} {last}",
                    exit.code, exit.signal
                ))
            },
            parse,
        )
    };
    Ok(probes.iter().map(verdict).collect())
}

fn parse(line: &str) -> Verdict {
    let (word, detail) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "HELD" => Verdict::Held(detail.to_owned()),
        "BROKEN" => Verdict::Broken(detail.to_owned()),
        _ => Verdict::Unclear(line.to_owned()),
    }
}

/// Makes the cheap attempts in `sandbox`, which must not serve a job after it: the first that the sandbox did not
/// stand, with its name.
///
/// # Errors
/// [`Error::Sandbox`] when they could not be made; a sandbox without python3 is refused by init with a reason.
pub async fn probe(sandbox: &Sandbox) -> Result<Option<(&'static str, Verdict)>, Error> {
    let cheap: Vec<&Probe> = escape::PROBES
        .iter()
        .chain(network::PROBES)
        .filter(|probe| probe.is_cheap)
        .collect();
    let verdicts = run(sandbox, &cheap).await?;
    let mut findings = cheap.iter().map(|probe| probe.name).zip(verdicts);
    Ok(findings.find(|(_, verdict)| !verdict.has_held()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reason_is_proof() {
        assert_eq!(parse("HELD [Errno 1] no"), Verdict::Held("[Errno 1] no".to_owned()));
        assert_eq!(
            parse("BROKEN it went through"),
            Verdict::Broken("it went through".to_owned())
        );
        assert_eq!(
            parse("UNCLEAR NameError: x"),
            Verdict::Unclear("UNCLEAR NameError: x".to_owned())
        );
        assert_eq!(parse(""), Verdict::Unclear(String::new()));
    }
}
