//! The last steps of a fork before it is the job's program.
//!
//! The order matters: what needs privileges comes first, then they are given up for good, and the program's folder and
//! file are looked up with the job's rights only.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs;
use std::io::{PipeWriter, Write};

use hothouse_protocol::{Failure, FailureCode, Rlimits};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, setgroups, setresgid, setresuid, setsid};

use crate::plan::{Identity, Image, Plan};
use crate::{files, sys, whatever};

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Session = 1,
    Identity = 2,
    Folder = 3,
    Exec = 4,
    File = 5,
}

/// What a fork that could not become the program tells its supervisor: the step, the errno, the number of the file.
pub(crate) type Problem = [u8; 9];

struct Stuck {
    step: Step,
    errno: Errno,
    file: usize,
}

impl Stuck {
    fn at(step: Step) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno, file: 0 }
    }

    fn problem(&self) -> Problem {
        let mut problem = [0; 9];
        problem[0] = self.step as u8;
        problem[1..5].copy_from_slice(&(self.errno as i32).to_be_bytes());
        problem[5..].copy_from_slice(&u32::try_from(self.file).unwrap_or(u32::MAX).to_be_bytes());
        problem
    }
}

/// Becomes the program; on failure tells the supervisor where and why.
///
/// Descriptors 0 to 2 are the program's already, and all others close by themselves.
pub(crate) fn become_program(plan: &Plan, identity: &Identity, mut failed: PipeWriter) -> ! {
    let Err(stuck) = try_become(plan, identity);
    let told = failed.write_all(&stuck.problem()).is_ok();
    sys::exit_now(if told { 127 } else { 126 })
}

fn try_become(plan: &Plan, identity: &Identity) -> Result<Infallible, Stuck> {
    sys::reset_signals();
    umask(Mode::from_bits_truncate(0o022));
    setsid().map_err(Stuck::at(Step::Session))?;
    if plan.has_terminal {
        sys::control_terminal(sys::standard(0)).map_err(Stuck::at(Step::Session))?;
    }
    // Raising one's own score needs no privilege: the kernel takes a job before init and its supervisors. Where the
    // file cannot be written, all are equal.
    whatever(fs::write("/proc/self/oom_score_adj", "1000"));
    limit(&plan.rlimits);
    become_identity(identity).map_err(Stuck::at(Step::Identity))?;
    files::write_texts(&plan.workspace, &plan.files).map_err(|(file, errno)| Stuck {
        step: Step::File,
        errno,
        file,
    })?;
    chdir(plan.cwd.as_c_str()).map_err(Stuck::at(Step::Folder))?;
    Err(Stuck::at(Step::Exec)(exec(plan)))
}

fn become_identity(identity: &Identity) -> nix::Result<()> {
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

/// What the supervisor tells about a report of [`become_program`].
pub(crate) fn failure(problem: Problem, plan: &Plan) -> Failure {
    let [step, e0, e1, e2, e3, f0, f1, f2, f3] = problem;
    let errno = Errno::from_raw(i32::from_be_bytes([e0, e1, e2, e3]));
    let file = u32::from_be_bytes([f0, f1, f2, f3]) as usize;
    let name = shortened(plan.argv.first().map(CString::as_c_str).unwrap_or_default());
    let cwd = shortened(&plan.cwd);
    let code = match errno {
        Errno::ENOENT | Errno::ENOTDIR => FailureCode::NotFound,
        Errno::EACCES | Errno::EPERM => FailureCode::Denied,
        Errno::ENOEXEC | Errno::E2BIG | Errno::ENAMETOOLONG | Errno::ELOOP => FailureCode::Invalid,
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => FailureCode::Exhausted,
        _ => FailureCode::Internal,
    };
    let is_step = |wanted: Step| step == wanted as u8;
    if is_step(Step::File) {
        let path: String = plan
            .files
            .get(file)
            .map(|file| file.path.chars().take(200).collect())
            .unwrap_or_default();
        return Failure {
            // Whatever is wrong with a file of the request, another sandbox would not mend it.
            code: if code == FailureCode::Exhausted {
                code
            } else {
                FailureCode::Invalid
            },
            message: format!("cannot write the file {path:?}: {}", errno.desc()),
        };
    }
    if is_step(Step::Folder) {
        return Failure {
            code,
            message: format!("cannot enter the folder {cwd:?}: {}", errno.desc()),
        };
    }
    if is_step(Step::Exec) {
        return Failure {
            code,
            message: format!("cannot execute {name:?}: {}", errno.desc()),
        };
    }
    Failure {
        code: FailureCode::Internal,
        message: format!("cannot become the job's user: {}", errno.desc()),
    }
}

fn shortened(name: &CStr) -> String {
    name.to_string_lossy().chars().take(200).collect()
}
