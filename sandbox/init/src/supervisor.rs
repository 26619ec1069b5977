//! One run's supervisor: a fork of init that owns the run's whole tree of processes.
//!
//! It is the subreaper of the tree, so every process of the run, however it was forked and whatever session it made,
//! stays its descendant until it is reaped. That makes three things exact that a process group cannot: killing the tree,
//! knowing when nothing is left, and the processor time of all of it.
//!
//! Init talks to it over a socket of packets: [`Command`] down, [`Report`] up. It keeps no other descriptor.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use hothouse_protocol::{Failure, FailureCode, FullMount};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::plan::{Identity, Plan};
use crate::{child, mounts, sys, tree};

/// The most bytes of a packet, either way.
pub(crate) const PACKET_MAX: usize = 16 * 1024;

const SOCKET: i32 = 3;
const OWN_IMAGE: i32 = 4;

// Rounds of stopping before killing: with everything stopped nobody forks, so a fork bomb cannot outrun the scan.
const STOP_ROUNDS: usize = 64;
const KILL_AGAIN: Duration = Duration::from_millis(5);

/// What init asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// A signal for the program's process group, while the program lives.
    Signal(i32),
    /// Kill everything.
    Kill,
}

/// What the supervisor tells.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program runs.
    Started { pid: i32 },
    /// It could not be started; nothing is left.
    Failed(Failure),
    /// It ended, and nothing of its tree is left.
    Ended(Ended),
}

/// How a tree ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The program's exit code.
    pub(crate) code: Option<i32>,
    /// The signal that killed the program.
    pub(crate) signal: Option<i32>,
    /// From the program's start to its own end, in microseconds.
    pub(crate) wall_us: u64,
    /// Processor time of the whole tree, in microseconds.
    pub(crate) cpu_us: u64,
    /// The largest process, in bytes.
    pub(crate) largest_bytes: u64,
    /// Mounts that were full at the program's end.
    pub(crate) full_mounts: Vec<FullMount>,
}

/// What a supervisor needs from init.
#[derive(Debug)]
pub(crate) struct Charge {
    /// What to start.
    pub(crate) plan: Plan,
    /// As whom.
    pub(crate) identity: Identity,
    /// The program's three descriptors.
    pub(crate) stdio: [OwnedFd; 3],
    /// The supervisor's end of the socket.
    pub(crate) socket: OwnedFd,
    /// Where programs can write.
    pub(crate) mounts: Vec<String>,
}

/// Init's own file, in a supervisor and its fork.
pub(crate) fn own_image() -> BorrowedFd<'static> {
    // The number is put in place by `arrange` and stays open until the program is executed.
    sys::standard(OWN_IMAGE)
}

/// The life of a supervisor, from the fork to its end.
pub(crate) fn supervise(charge: Charge, own_image: BorrowedFd<'_>) -> ! {
    let Charge {
        plan,
        identity,
        stdio,
        socket,
        mounts,
    } = charge;
    let code = match arrange(stdio, socket, own_image).and_then(|()| Supervisor::start(&plan, &identity, mounts)) {
        Ok(Ok(mut supervisor)) => supervisor.run(),
        Ok(Err(failure)) => report(&Report::Failed(failure)),
        Err(errno) => report(&Report::Failed(failed_to_fork(errno))),
    };
    sys::exit_now(i32::from(!code))
}

/// Puts the descriptors where they belong and closes all others, among them those of the worker and of other runs.
fn arrange(stdio: [OwnedFd; 3], socket: OwnedFd, own_image: BorrowedFd<'_>) -> nix::Result<()> {
    let [stdin, stdout, stderr] = stdio;
    let high = [
        sys::move_high(&stdin)?,
        sys::move_high(&stdout)?,
        sys::move_high(&stderr)?,
    ];
    let socket_high = sys::move_high(&socket)?;
    let own_image = own_image.try_clone_to_owned().map_err(|_io| Errno::EMFILE)?;
    let image_high = sys::move_high(&own_image)?;
    // From here on numbers are overwritten: nothing that was there before may close them later.
    [stdin, stdout, stderr, socket, own_image]
        .into_iter()
        .for_each(sys::leak);
    for (number, fd) in (0..).zip(&high) {
        sys::put_at(fd.as_fd(), number, true)?;
    }
    sys::put_at(socket_high.as_fd(), SOCKET, false)?;
    sys::put_at(image_high.as_fd(), OWN_IMAGE, false)?;
    high.into_iter().chain([socket_high, image_high]).for_each(sys::leak);
    sys::close_from(OWN_IMAGE + 1);
    Ok(())
}

#[derive(Debug)]
struct Supervisor {
    program: Pid,
    started: Moment,
    mounts: Vec<String>,
    children: SignalFd,
    end: Option<Ended>,
}

impl Supervisor {
    fn start(plan: &Plan, identity: &Identity, mounts: Vec<String>) -> nix::Result<Result<Self, Failure>> {
        prctl::set_child_subreaper(true)?;
        let (mut failed, failed_in_child) = std::io::pipe().map_err(|_io| Errno::EMFILE)?;
        // The mask with SIGCHLD blocked is init's and inherited.
        let children = SignalFd::with_flags(&child_signal(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let started = Moment::now();
        let Some(program) = sys::fork_single_threaded()? else {
            child::become_program(plan, identity, failed_in_child)
        };
        drop(failed_in_child);
        // The program's input and output are the program's alone from now on: their ends must be seen.
        (0..3).map(sys::own).for_each(drop);
        let mut problem: child::Problem = [0; 9];
        if failed.read_exact(&mut problem).is_ok() {
            return Ok(Err(child::failure(problem, plan)));
        }
        report(&Report::Started { pid: program.as_raw() });
        Ok(Ok(Self {
            program,
            started,
            mounts,
            children,
            end: None,
        }))
    }

    /// Until the tree is gone; whether init heard of it.
    fn run(&mut self) -> bool {
        loop {
            let has_children = self.reap();
            if self.end.is_some() {
                if has_children {
                    self.kill_tree();
                }
                return self.tell_end();
            }
            self.wait(&[sys::standard(SOCKET)], PollTimeout::NONE);
            match next_command() {
                None => {}
                Some(Command::Signal(signal)) => self.signal(signal),
                Some(Command::Kill) => self.kill_tree(),
            }
        }
    }

    /// Waits for the end of a child or for one of `others`.
    fn wait(&self, others: &[BorrowedFd<'_>], timeout: PollTimeout) {
        let watched = [self.children.as_fd()].into_iter().chain(others.iter().copied());
        let mut fds: Vec<_> = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let ready = poll(&mut fds, timeout);
        debug_assert!(ready.is_ok() || ready == Err(Errno::EINTR));
        while let Ok(Some(_)) = self.children.read_signal() {}
    }

    /// Reaps whoever ended; whether a child is left.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code), None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, None, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => return false,
            };
            if pid == self.program {
                let wall_us = micros(Moment::now().since(self.started));
                let full_mounts = mounts::full(&self.mounts);
                self.end = Some(Ended {
                    code,
                    signal,
                    wall_us,
                    full_mounts,
                    ..Ended::default()
                });
            }
        }
    }

    fn signal(&self, signal: i32) {
        // While the program is not reaped its number is its own, so no other group can be meant.
        if self.end.is_none()
            && let Ok(signal) = Signal::try_from(signal)
        {
            let sent = kill(Pid::from_raw(-self.program.as_raw()), signal);
            debug_assert!(sent.is_ok() || sent == Err(Errno::ESRCH));
        }
    }

    /// Kills every descendant and reaps until none is left.
    fn kill_tree(&mut self) {
        let own = Pid::this();
        let mut stopped = tree::descendants(own);
        signal_all(&stopped, Signal::SIGSTOP);
        for _ in 0..STOP_ROUNDS {
            let fresh = tree::descendants(own).difference(&stopped).copied().collect();
            signal_all(&fresh, Signal::SIGSTOP);
            if fresh.is_empty() {
                break;
            }
            stopped.extend(fresh);
        }
        loop {
            signal_all(&tree::descendants(own), Signal::SIGKILL);
            if !self.reap() {
                return;
            }
            self.wait(&[], PollTimeout::try_from(KILL_AGAIN).unwrap_or(PollTimeout::ZERO));
        }
    }

    fn tell_end(&mut self) -> bool {
        let mut end = self.end.take().unwrap_or_default();
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) {
            let spent = [usage.user_time(), usage.system_time()];
            let micros = spent
                .iter()
                .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec())
                .sum::<i64>();
            end.cpu_us = u64::try_from(micros).unwrap_or(0);
            end.largest_bytes = u64::try_from(usage.max_rss()).unwrap_or(0) * 1024;
        }
        report(&Report::Ended(end))
    }
}

/// A mask of SIGCHLD alone.
pub(crate) fn child_signal() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set
}

fn signal_all(pids: &std::collections::BTreeSet<Pid>, signal: Signal) {
    for pid in pids {
        let sent = kill(*pid, signal);
        debug_assert!(sent.is_ok() || sent == Err(Errno::ESRCH), "{sent:?}");
    }
}

/// The next packet of init, when there is one. When init is gone, nothing may stay.
fn next_command() -> Option<Command> {
    let mut packet = [0; PACKET_MAX];
    match recv(SOCKET, &mut packet, MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EAGAIN | Errno::EINTR) => None,
        Ok(0) | Err(_) => Some(Command::Kill),
        Ok(len) => serde_json::from_slice(packet.get(..len)?).ok(),
    }
}

fn report(report: &Report) -> bool {
    let packet = serde_json::to_vec(report).unwrap_or_default();
    send(SOCKET, &packet, MsgFlags::MSG_NOSIGNAL).is_ok()
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What to say when the system would not give a process.
pub(crate) fn failed_to_fork(errno: Errno) -> Failure {
    let code = match errno {
        Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE => FailureCode::Exhausted,
        _ => FailureCode::Internal,
    };
    Failure {
        code,
        message: format!("cannot start another process: {}", errno.desc()),
    }
}
