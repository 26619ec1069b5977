//! One run's supervisor: a fork of init that owns the run's whole tree of processes.
//!
//! It is the subreaper of the tree, so every process of the run, however it was forked and whatever session it made,
//! stays its descendant until it is reaped. That makes three things exact that a process group cannot: killing the tree,
//! knowing when nothing is left, and the processor time of all of it.
//!
//! It is forked before there is a program, and forks in its turn what will become the program, so that a request finds
//! both ready: see [`crate::spare`]. Init talks to it over a socket of packets: [`Command`] down, [`Report`] up. It keeps
//! no other descriptor.

use std::collections::BTreeSet;
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
use crate::plan::Identity;
use crate::spare::Word;
use crate::{child, mounts, sys, tree};

/// The most bytes of a packet, either way.
pub(crate) const PACKET_MAX: usize = 16 * 1024;

const SOCKET: i32 = 3;
const DOOR: i32 = 4;
const OWN_IMAGE: i32 = 5;

// Rounds of stopping before killing.
const STOP_ROUNDS: usize = 64;
const KILL_AGAIN: Duration = Duration::from_millis(5);

/// What init asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// A signal for the program's process group, while the program lives.
    Signal(i32),
    /// Kill everything.
    Kill,
    /// Stop the program and kill everything else.
    Rest,
}

/// What the supervisor tells.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program ended, and nothing of its tree is left.
    Ended(Ended),
    /// It is stopped, and nothing else of its tree is left: so many were killed.
    Resting(u32),
}

/// How a tree ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// The program's exit code.
    pub(crate) code: Option<i32>,
    /// The signal that killed the program.
    pub(crate) signal: Option<i32>,
    /// When the program itself did.
    pub(crate) at: Moment,
    /// Processor time of the whole tree, in microseconds.
    pub(crate) cpu_us: u64,
    /// The largest process, in bytes.
    pub(crate) largest_bytes: u64,
    /// Mounts that were full at the program's end.
    pub(crate) full_mounts: Vec<FullMount>,
}

/// What a supervisor needs from init.
#[derive(Debug)]
pub(crate) struct Charge<'a> {
    /// As whom programs run.
    pub(crate) identity: Identity,
    /// Where they work.
    pub(crate) workspace: &'a str,
    /// Where they can write.
    pub(crate) mounts: &'a [String],
    /// Init's own file.
    pub(crate) own_image: BorrowedFd<'a>,
    /// The supervisor's end of the socket.
    pub(crate) socket: OwnedFd,
    /// Where the program to be hears what it will be.
    pub(crate) door: OwnedFd,
}

/// Init's own file, in the fork that becomes a program.
pub(crate) fn own_image() -> BorrowedFd<'static> {
    // The number is put in place by `arrange` and stays open until the program is executed.
    sys::standard(OWN_IMAGE)
}

/// The life of a supervisor, from the fork to its end.
pub(crate) fn supervise(charge: Charge<'_>) -> ! {
    let Charge {
        identity,
        workspace,
        mounts,
        own_image,
        socket,
        door,
    } = charge;
    let arranged = arrange(&[&socket, &door], own_image);
    // Numbers were overwritten: nothing that was there before may close them later.
    [socket, door].into_iter().for_each(sys::leak);
    if arranged.is_err() {
        // No number is certain, so nothing can be said but by ending.
        sys::exit_now(1);
    }
    let started = prctl::set_child_subreaper(true)
        .map_err(without_subreaper)
        .and_then(|()| Supervisor::start(&identity, workspace, mounts.to_vec()).map_err(failed_to_fork));
    let told = match started {
        Ok(mut supervisor) => supervisor.run(),
        Err(failure) => Word::Failed(failure).say(&sys::own(DOOR)) && report(&Report::Ended(Ended::default())),
    };
    sys::exit_now(i32::from(!told))
}

/// Puts the descriptors where they belong and closes all others, among them those of the worker and of other runs.
fn arrange(own: &[&OwnedFd], own_image: BorrowedFd<'_>) -> nix::Result<()> {
    let own_image = own_image.try_clone_to_owned().map_err(|_io| Errno::EMFILE)?;
    let high: Vec<OwnedFd> = own
        .iter()
        .copied()
        .chain([&own_image])
        .map(sys::move_high)
        .collect::<nix::Result<_>>()?;
    sys::leak(own_image);
    for (number, fd) in (SOCKET..).zip(&high) {
        sys::put_at(fd.as_fd(), number, false)?;
    }
    high.into_iter().for_each(sys::leak);
    sys::close_from(OWN_IMAGE + 1);
    (0..SOCKET).map(sys::own).for_each(drop);
    Ok(())
}

#[derive(Debug)]
struct Supervisor {
    program: Pid,
    mounts: Vec<String>,
    children: SignalFd,
    end: Option<Ended>,
}

impl Supervisor {
    fn start(identity: &Identity, workspace: &str, mounts: Vec<String>) -> nix::Result<Self> {
        // The mask with SIGCHLD blocked is init's and inherited.
        let children = SignalFd::with_flags(&child_signal(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let Some(program) = sys::fork_single_threaded()? else {
            child::become_program(&sys::own(DOOR), identity, workspace)
        };
        drop(sys::own(DOOR));
        Ok(Self {
            program,
            mounts,
            children,
            end: None,
        })
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
                Some(Command::Rest) => self.rest(),
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
                self.end = Some(Ended {
                    code,
                    signal,
                    at: Moment::now(),
                    full_mounts: mounts::full(&self.mounts),
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
        stop_tree();
        loop {
            signal_all(&tree::descendants(Pid::this()), Signal::SIGKILL);
            if !self.reap() {
                return;
            }
            self.wait(&[], PollTimeout::try_from(KILL_AGAIN).unwrap_or(PollTimeout::ZERO));
        }
    }

    /// Stops the program where it is and kills every other descendant. Those that it would have to reap stay until it goes on
    /// or ends; they run no more.
    fn rest(&mut self) {
        stop_tree();
        let mut killed = BTreeSet::new();
        loop {
            self.reap();
            if self.end.is_some() {
                // How it ended is what there is to say.
                return;
            }
            let mut others = tree::descendants(Pid::this());
            others.remove(&self.program);
            if others.is_empty() {
                break;
            }
            signal_all(&others, Signal::SIGKILL);
            killed.extend(others);
            self.wait(&[], PollTimeout::try_from(KILL_AGAIN).unwrap_or(PollTimeout::ZERO));
        }
        report(&Report::Resting(u32::try_from(killed.len()).unwrap_or(u32::MAX)));
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

/// Stops every descendant. With everything stopped nobody forks, so a fork bomb cannot outrun the scan.
fn stop_tree() {
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
}

fn signal_all(pids: &BTreeSet<Pid>, signal: Signal) {
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

/// What to say where nobody but PID 1 is given orphans, as in the gVisor of Debian 12: nobody would find what a program left
/// running.
fn without_subreaper(errno: Errno) -> Failure {
    let errno = errno.desc();
    Failure {
        code: FailureCode::Internal,
        message: format!(
            "this kernel or runtime cannot hold a program's orphans together (PR_SET_CHILD_SUBREAPER): {errno}"
        ),
    }
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
