//! A fork that waits to become a job's program, and its last steps on the way.
//!
//! The order matters: what needs privileges comes first, then they are given up for good, and the program's folder and
//! file are looked up with the job's rights only.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use hothouse_protocol::{Failure, FailureCode, Rlimits};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, setgroups, setresgid, setresuid, setsid};

use crate::plan::{Identity, Image, Plan};
use crate::spare::{self, Order, Word};
use crate::{files, sys, whatever};

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Session,
    Identity,
    Folder,
    Exec,
    /// With the number of the file.
    File(usize),
}

struct Stuck {
    step: Step,
    errno: Errno,
}

impl Stuck {
    fn at(step: Step) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno }
    }
}

/// Waits at the door for an order and becomes the program; on failure says through the door why not. When it has become
/// the program, the door closes by itself, as does every descriptor but 0 to 2.
pub(crate) fn become_program(door: &OwnedFd, identity: &Identity, workspace: &str) -> ! {
    sys::reset_signals();
    umask(Mode::from_bits_truncate(0o022));
    let session = setsid().map_err(Stuck::at(Step::Session));
    // Without an order init needs no program any more.
    let Ok(Order { program, stdio }) = spare::receive(door) else {
        sys::exit_now(0)
    };
    let stuck = match Plan::new(&program, workspace) {
        Err(failure) => failure,
        Ok(plan) => {
            let Err(stuck) = session.and_then(|_pid| try_become(&plan, identity, stdio));
            failure(&stuck, &plan)
        }
    };
    sys::exit_now(if Word::Failed(stuck).say(door) { 127 } else { 126 })
}

fn try_become(plan: &Plan, identity: &Identity, stdio: [OwnedFd; 3]) -> Result<Infallible, Stuck> {
    for (number, fd) in (0..).zip(stdio) {
        sys::put_at(fd.as_fd(), number, true).map_err(Stuck::at(Step::Session))?;
        // It may be one of those that are put at their places.
        sys::leak(fd);
    }
    if plan.has_terminal {
        sys::control_terminal(sys::standard(0)).map_err(Stuck::at(Step::Session))?;
    }
    // Raising one's own score needs no privilege: the kernel takes a job before init and its supervisors. Where the
    // file cannot be written, all are equal.
    whatever(fs::write("/proc/self/oom_score_adj", "1000"));
    limit(&plan.rlimits);
    become_identity(identity).map_err(Stuck::at(Step::Identity))?;
    files::write_texts(&plan.workspace, &plan.files).map_err(|(file, errno)| Stuck {
        step: Step::File(file),
        errno,
    })?;
    chdir(plan.cwd.as_c_str()).map_err(Stuck::at(Step::Folder))?;
    Err(Stuck::at(Step::Exec)(exec(plan)))
}

pub(crate) fn become_identity(identity: &Identity) -> nix::Result<()> {
    if identity.can_change {
        setgroups(&[])?;
        setresgid(identity.gid, identity.gid, identity.gid)?;
        setresuid(identity.uid, identity.uid, identity.uid)?;
    }
    sys::drop_capabilities()
}

fn limit(rlimits: &Rlimits) {
    lower(Resource::RLIMIT_CORE, Some(0));
    lower(Resource::RLIMIT_NOFILE, rlimits.nofile);
    lower(Resource::RLIMIT_FSIZE, rlimits.fsize_bytes);
    lower(Resource::RLIMIT_CPU, rlimits.cpu_seconds);
}

/// Limits are only ever lowered: a request above the sandbox's own limit is that limit.
fn lower(resource: Resource, wanted: Option<u64>) {
    if let (Some(wanted), Ok((_, hard))) = (wanted, getrlimit(resource)) {
        let value = wanted.min(hard);
        let lowered = setrlimit(resource, value, value);
        debug_assert!(lowered.is_ok());
    }
}

fn exec(plan: &Plan) -> Errno {
    let candidates = match &plan.image {
        Image::Own => return sys::exec_fd(crate::supervisor::own_image(), &plan.argv, &plan.env),
        Image::Paths(candidates) => candidates,
    };
    let mut result = Errno::ENOENT;
    for path in candidates {
        match sys::exec_path(path, &plan.argv, &plan.env) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => result = Errno::EACCES,
            errno => return errno,
        }
    }
    result
}

/// What is told about a start that failed.
fn failure(stuck: &Stuck, plan: &Plan) -> Failure {
    let errno = stuck.errno;
    let code = match errno {
        Errno::ENOENT | Errno::ENOTDIR => FailureCode::NotFound,
        Errno::EACCES | Errno::EPERM => FailureCode::Denied,
        Errno::ENOEXEC | Errno::E2BIG | Errno::ENAMETOOLONG | Errno::ELOOP => FailureCode::Invalid,
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => FailureCode::Exhausted,
        _ => FailureCode::Internal,
    };
    let (code, what) = match stuck.step {
        Step::File(file) => {
            let path: String = plan
                .files
                .get(file)
                .map(|file| file.path.chars().take(200).collect())
                .unwrap_or_default();
            let what = format!("write the file {path:?}");
            // Whatever is wrong with a file of the request, another sandbox would not mend it.
            let is_ours = code == FailureCode::Exhausted;
            (if is_ours { code } else { FailureCode::Invalid }, what)
        }
        Step::Folder => (code, format!("enter the folder {:?}", shortened(&plan.cwd))),
        Step::Exec => {
            let name = plan.argv.first().map(CString::as_c_str).unwrap_or_default();
            (code, format!("execute {:?}", shortened(name)))
        }
        Step::Session | Step::Identity => (FailureCode::Internal, "become the job's user".to_owned()),
    };
    Failure {
        code,
        message: format!("cannot {what}: {}", errno.desc()),
    }
}

fn shortened(name: &CStr) -> String {
    name.to_string_lossy().chars().take(200).collect()
}
