//! Init's loop.
//!
//! Level-triggered and without bookkeeping of readiness: after each wake-up everything that could move is tried, and
//! what cannot says so at once. There are at most a few runs, so that costs a few system calls.

mod reset;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use hothouse_protocol::{Failure, FailureCode, FromInit, Greeting, Rested, ToInit};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::cleaner::Cleaner;
use crate::clock::Moment;
use crate::connection::{Connection, Lost};
use crate::input::OverWindow;
use crate::output::CHUNK;
use crate::plan::Identity;
use crate::run::Run;
use crate::spare::Spare;
use crate::supervisor::child_signal;
use crate::surroundings::Surroundings;
use crate::tcp::Counted;
use crate::trouble::Trouble;
use crate::tunnel::{self, Tunnels};
use crate::{about, complain, mounts, sys, tree, whatever};

const RUNS_MAX: usize = 32;
// The timer of `poll` stands still while the machine sleeps and the lease does not, so it is looked at this often.
const LOOK_AT_LEASE: Duration = Duration::from_millis(250);
const LAST_REAP_MAX: Duration = Duration::from_millis(500);
// How long after a program's end no spare is made: a reset, which would kill it, or the end of the sandbox comes sooner.
const SPARE_AFTER: Duration = Duration::from_millis(20);
// How long after one that could not be made the next is tried.
const SPARE_AGAIN: Duration = Duration::from_secs(1);

/// Serves the worker until it is gone. A driver whose users are not those of an image says which one programs are.
pub(crate) fn serve(job_uid: Option<u32>) -> ExitCode {
    // Everything here kills "all processes"; anywhere but in a process namespace of its own that would be the machine.
    if Pid::this().as_raw() != 1 {
        complain("this must be PID 1 of a sandbox");
        return ExitCode::from(2);
    }
    let mut server = match Server::prepare(job_uid) {
        Ok(server) => server,
        Err(errno) => {
            complain(format_args!("cannot begin: {}", errno.desc()));
            return ExitCode::from(2);
        }
    };
    let mut buffer = vec![0; CHUNK];
    let trouble = loop {
        if let Err(trouble) = server.turn(&mut buffer) {
            break trouble;
        }
    };
    kill_everything();
    match trouble {
        Trouble::Lost(Lost::Closed) => ExitCode::SUCCESS,
        trouble => {
            complain(&trouble);
            ExitCode::FAILURE
        }
    }
}

struct Server {
    connection: Connection,
    children: SignalFd,
    job_uid: Option<u32>,
    around: Option<Surroundings>,
    runs: BTreeMap<u32, Run>,
    spare: Option<Spare>,
    tunnels: Tunnels,
    lease: Option<Moment>,
    // Requests to kill everything that wait for it to be done.
    clearing: Vec<u32>,
    // Requests to reset that wait for the same, and the reset that is under way.
    to_reset: Vec<u32>,
    cleaner: Option<Cleaner>,
    // What TCP had counted when there was no connection.
    counted: Option<Counted>,
    // Before that no spare is made.
    spare_at: Moment,
    // The program that is to rest, and how many strays were killed for that.
    resting: Option<(u32, u32)>,
}

impl Server {
    fn prepare(job_uid: Option<u32>) -> nix::Result<Self> {
        sys::close_from(3);
        prctl::set_dumpable(false)?;
        prctl::set_no_new_privs()?;
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&child_signal()), None)?;
        let children = SignalFd::with_flags(&child_signal(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let connection = Connection::open()?;
        Ok(Self {
            connection,
            children,
            job_uid,
            around: None,
            runs: BTreeMap::new(),
            spare: None,
            tunnels: Tunnels::default(),
            lease: None,
            clearing: Vec::new(),
            to_reset: Vec::new(),
            cleaner: None,
            counted: None,
            spare_at: Moment::now(),
            resting: None,
        })
    }

    fn turn(&mut self, buffer: &mut [u8]) -> Result<(), Trouble> {
        let has_knocked = self.wait()?;
        self.reap();
        self.connection.read(buffer)?;
        while let Some(message) = self.connection.next()? {
            self.obey(message)?;
        }
        let now = Moment::now();
        if self.lease.is_some_and(|until| now >= until) {
            return Err(Trouble::LeaseOver);
        }
        if let Some(around) = &self.around {
            let mut over = Vec::new();
            for (stream, run) in &mut self.runs {
                run.look_at_time(now)?;
                if run.go_on(&mut self.connection, around, buffer)? {
                    over.push(*stream);
                }
            }
            for stream in over {
                if self.runs.remove(&stream).is_some_and(|run| run.is_foreign) {
                    self.spare_at = now.after(SPARE_AFTER);
                }
            }
        }
        let has_runs = !self.runs.is_empty();
        let now = tunnel::Now { has_runs, has_knocked };
        self.tunnels.go_on(now, &mut self.connection, buffer)?;
        self.clear()?;
        self.clean()?;
        self.settle()?;
        self.connection.flush()?;
        self.be_ready();
        Ok(())
    }

    /// Makes a spare for the next run while nothing runs: nobody waits, and a job that looks around finds none.
    fn be_ready(&mut self) {
        if let Some(around) = &self.around
            && self.spare.is_none()
            && self.is_free()
            && Moment::now() >= self.spare_at
        {
            // Without one, the run itself says why none can be forked.
            self.spare = Spare::fork(around).ok();
            self.spare_at = Moment::now().after(SPARE_AGAIN);
        }
    }

    /// Whether nothing runs, and nobody waits for that.
    fn is_free(&self) -> bool {
        self.runs.is_empty() && self.clearing.is_empty() && self.to_reset.is_empty() && self.cleaner.is_none()
    }

    /// Whether somebody wants a tunnel.
    fn wait(&self) -> Result<bool, Trouble> {
        let lacks_spare = self.around.is_some() && self.spare.is_none() && self.is_free();
        let spare_at = lacks_spare.then_some(self.spare_at);
        let runs = self.runs.values().filter_map(Run::due);
        let due = runs.chain(self.lease).chain(spare_at).min();
        let limit = self.lease.map(|_| LOOK_AT_LEASE);
        let until_due = due.map(|due| due.since(Moment::now()) + Duration::from_millis(1));
        let timeout = until_due.into_iter().chain(limit).min();
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX)
        });

        let (has_room, has_waiting) = (self.connection.has_room(), self.connection.has_waiting());
        let mut fds = vec![
            PollFd::new(sys::standard(0), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
        ];
        let first = fds.len();
        fds.extend(self.tunnels.doors());
        let doors = first..fds.len();
        if has_waiting {
            fds.push(PollFd::new(sys::standard(1), PollFlags::POLLOUT));
        }
        for run in self.runs.values() {
            run.watch(has_room, &mut fds);
        }
        self.tunnels.watch(has_room, &mut fds);
        fds.extend(self.cleaner.as_ref().map(Cleaner::watch));
        match poll(&mut fds, timeout) {
            Ok(_) => {
                let mut doors = fds.get(doors).unwrap_or_default().iter();
                Ok(doors.any(|door| door.any() == Some(true)))
            }
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(Lost::Pipe(errno).into()),
        }
    }

    /// Supervisors that ended, and what they may have left behind.
    fn reap(&self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
    }

    fn obey(&mut self, message: ToInit) -> Result<(), Trouble> {
        match message {
            ToInit::Hello(greeting) => self.greet(greeting)?,
            ToInit::Run { stream, run } => self.start(stream, *run)?,
            ToInit::Stdin { stream, data, is_end } => {
                if let Some(run) = self.runs.get_mut(&stream) {
                    run.input().push(data, is_end).map_err(|OverWindow| Lost::OverWindow)?;
                }
            }
            ToInit::Signal { stream, signal } => {
                if let Some(run) = self.runs.get(&stream) {
                    run.signal(signal);
                }
            }
            ToInit::Kill { stream, discard } => {
                if let Some(run) = self.runs.get_mut(&stream) {
                    run.kill(discard);
                }
            }
            ToInit::Resize { stream, size } => {
                if let Some(run) = self.runs.get(&stream) {
                    run.resize(size);
                }
            }
            ToInit::Credit {
                stream,
                channel,
                credit,
            } => {
                if let Some(run) = self.runs.get_mut(&stream) {
                    run.output(channel).grant(credit);
                }
            }
            ToInit::Lease { run_on_ms } => self.lease = Some(Moment::now().after(Duration::from_millis(run_on_ms))),
            ToInit::Ping { nonce } => self.connection.send(FromInit::Pong { nonce })?,
            ToInit::KillAll { stream } => {
                self.runs.values_mut().for_each(|run| run.kill(false));
                self.clearing.push(stream);
            }
            ToInit::Reset { stream } => {
                self.runs.values_mut().for_each(|run| run.kill(false));
                self.to_reset.push(stream);
            }
            ToInit::Rest { stream } => {
                for (number, run) in &mut self.runs {
                    if *number == stream {
                        run.rest();
                    } else {
                        run.kill(false);
                    }
                }
                self.resting = Some((stream, 0));
            }
            ToInit::Data { stream, data, is_end } => self.tunnels.push(stream, data, is_end)?,
            ToInit::TunnelCredit { stream, credit } => self.tunnels.grant(stream, credit),
            ToInit::Close { stream } => self.tunnels.close(stream),
        }
        Ok(())
    }

    fn greet(&mut self, mut greeting: Greeting) -> Result<(), Trouble> {
        if let Some(uid) = self.job_uid {
            (greeting.uid, greeting.gid) = (uid, uid);
        }
        let identity: Identity = about::identity(&greeting);
        let around = Surroundings {
            identity,
            workspace: greeting.workspace,
            mounts: mounts::writable(),
            cgroup: Cgroup::detect(),
            own_image: File::open("/proc/self/exe")
                .map_err(|_io| Lost::Pipe(Errno::ENOENT))?
                .into(),
        };
        self.tunnels.listen(&greeting.listen);
        self.counted = Counted::now();
        let about = about::describe(&identity, &around.cgroup, &around.mounts, self.tunnels.ports());
        self.around = Some(around);
        Ok(self.connection.send(FromInit::Hello(about))?)
    }

    fn start(&mut self, stream: u32, run: hothouse_protocol::Run) -> Result<(), Trouble> {
        let started = match &self.around {
            _ if self.runs.contains_key(&stream) => Err(refused(FailureCode::Invalid, "the stream is in use")),
            _ if self.runs.len() >= RUNS_MAX => Err(refused(FailureCode::Exhausted, "too many programs at once")),
            None => Err(refused(FailureCode::Invalid, "there was no hello")),
            _ if self.cleaner.is_some() || !self.to_reset.is_empty() => {
                Err(refused(FailureCode::Invalid, "the sandbox is being reset"))
            }
            Some(around) => Run::start(stream, run, around, self.spare.take()),
        };
        match started {
            Ok(mut run) => {
                run.was_alone = self.runs.is_empty();
                self.runs.values_mut().for_each(|other| other.was_alone = false);
                self.runs.insert(stream, run);
                Ok(())
            }
            Err(failure) => Ok(self.connection.send(FromInit::Failed { stream, failure })?),
        }
    }

    /// Answers requests to kill everything when it is done.
    fn clear(&mut self) -> Result<(), Trouble> {
        if self.clearing.is_empty() || !self.runs.is_empty() {
            return Ok(());
        }
        // All descend from supervisors that are done; this is for what nobody thought of.
        self.spare = None;
        kill_everything();
        for stream in std::mem::take(&mut self.clearing) {
            self.connection.send(FromInit::Done { stream })?;
        }
        Ok(())
    }

    /// Answers the request to let a program rest, when nothing else runs.
    fn settle(&mut self) -> Result<(), Trouble> {
        let Some((stream, strays)) = self.resting else {
            return Ok(());
        };
        let runs = self.runs.len();
        let rested = match (self.runs.get_mut(&stream), runs, &self.around) {
            (None, 0, _) => Rested::default(),
            (Some(run), 1, Some(around)) => {
                let Some(known) = run.at_rest() else { return Ok(()) };
                // All descend from the supervisor; this is for what nobody thought of.
                let mut others = tree::descendants(Pid::this());
                others.retain(|pid| !known.contains(pid));
                if !others.is_empty() {
                    for pid in &others {
                        whatever(kill(*pid, Signal::SIGKILL));
                    }
                    let more = u32::try_from(others.len()).unwrap_or(u32::MAX);
                    self.resting = Some((stream, strays.saturating_add(more)));
                    return Ok(());
                }
                run.rested(strays, &around.cgroup)
            }
            // The others are on their way out.
            _ => return Ok(()),
        };
        self.resting = None;
        Ok(self.connection.send(FromInit::Rested { stream, rested })?)
    }
}

fn refused(code: FailureCode, message: &str) -> Failure {
    Failure {
        code,
        message: message.to_owned(),
    }
}

/// Kills every process of the namespace but init, and waits for a moment until they are gone.
fn kill_everything() {
    let until = Moment::now().after(LAST_REAP_MAX);
    // It fails when there is nobody.
    whatever(kill(Pid::from_raw(-1), Signal::SIGKILL));
    while Moment::now() < until {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
