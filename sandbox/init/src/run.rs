//! One run, from its request to its exit: a supervisor, the program's input and output, and its limits.

mod rest;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use hothouse_protocol::{Channel, Exec, Exit, Failure, FromInit, Program, TerminalSize};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, send};

use crate::cgroup::Counters;
use crate::clock::Moment;
use crate::connection::{Connection, Lost};
use crate::input::Input;
use crate::output::{Output, Rest};
use crate::plan;
use crate::spare::{Heard, Order, Spare};
use crate::supervisor::{Command, Ended, Report, failed_to_fork};
use crate::surroundings::Surroundings;
use crate::trouble::{Trouble, Unsupervised};
use crate::wires::Wires;
use crate::{sys, whatever};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

// After SIGKILL to a whole tree only processes stuck in the kernel stay; then the sandbox is not usable any more.
const KILL_TAKES_MAX: Duration = Duration::from_secs(10);

/// A run.
#[derive(Debug)]
pub(crate) struct Run {
    stream: u32,
    ends: Spare,
    begun: Moment,
    terminal: Option<OwnedFd>,
    input: Input,
    stdout: Output,
    stderr: Output,
    // A program may write before its supervisor has said that it runs; the worker hears of them in order.
    is_started: bool,
    timeout: Option<Duration>,
    stage: Stage,
    grace: Duration,
    kill_bytes: u64,
    before: Counters,
    /// How many others were killed for its rest, while it rests.
    resting: Option<u32>,
    reasons: Reasons,
    /// Whether no other run shared its time.
    pub(crate) was_alone: bool,
    /// Whether it is no face of init's.
    pub(crate) is_foreign: bool,
}

#[derive(Debug)]
enum Stage {
    Running { until: Option<Moment> },
    Terminating { until: Moment },
    Killing { until: Moment },
    Ended(Ended),
    Failed(Failure),
    Over,
}

#[derive(Debug, Default)]
struct Reasons {
    timed_out: bool,
    output_limit: bool,
    killed: bool,
}

impl Run {
    /// Has `spare` become the program; without one that waits, another is forked first.
    pub(crate) fn start(
        stream: u32,
        run: hothouse_protocol::Run,
        around: &Surroundings,
        spare: Option<Spare>,
    ) -> Result<Self, Failure> {
        let is_foreign = matches!(run.program, Program::Exec(_));
        let wires = match &run.program {
            Program::Exec(Exec {
                terminal: Some(size), ..
            }) => Wires::terminal(*size),
            program => Wires::pipes(plan::has_input(program)),
        };
        let wires = wires.map_err(failed_to_fork)?;
        let (begun, timeout) = (Moment::now(), run.timeout_ms.map(Duration::from_millis));
        let order = Order {
            program: run.program,
            stdio: wires.theirs,
        };
        let ends = Spare::ordered(spare, &order, around).map_err(failed_to_fork)?;
        drop(order);
        let output = |fd| Output::new(fd, run.head_bytes, run.tail_bytes);
        Ok(Self {
            stream,
            ends,
            begun,
            input: Input::new(wires.input, wires.terminal.is_some()),
            terminal: wires.terminal,
            stdout: output(Some(wires.stdout)),
            stderr: output(wires.stderr),
            is_started: false,
            timeout,
            stage: Stage::Running {
                until: timeout.map(|timeout| begun.after(timeout)),
            },
            grace: Duration::from_millis(run.grace_ms),
            kill_bytes: run.kill_bytes.unwrap_or(u64::MAX),
            // Read while the program is on its way: it has used nothing yet.
            before: around.cgroup.read(),
            resting: None,
            reasons: Reasons::default(),
            was_alone: true,
            is_foreign,
        })
    }

    /// The program's input, to push to.
    pub(crate) fn input(&mut self) -> &mut Input {
        &mut self.input
    }

    /// An output of the program, to give credit to.
    pub(crate) fn output(&mut self, channel: Channel) -> &mut Output {
        match channel {
            Channel::Stdout => &mut self.stdout,
            Channel::Stderr => &mut self.stderr,
        }
    }

    /// A signal for the program.
    pub(crate) fn signal(&self, signal: i32) {
        self.command(Command::Signal(signal));
    }

    /// Kills everything because the worker said so.
    pub(crate) fn kill(&mut self, discard: bool) {
        if discard {
            self.stdout.discard();
            self.stderr.discard();
        }
        if self.kill_now() {
            self.reasons.killed = true;
        }
    }

    /// Another size of the terminal.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            let resized = sys::resize_terminal(terminal.as_fd(), size.rows, size.cols);
            debug_assert!(resized.is_ok());
        }
    }

    /// What to wait for.
    pub(crate) fn watch<'a>(&'a self, has_room: bool, fds: &mut Vec<PollFd<'a>>) {
        if self.is_supervised() {
            fds.push(PollFd::new(self.ends.socket.as_fd(), PollFlags::POLLIN));
        }
        if self.is_expected() {
            fds.push(PollFd::new(self.ends.door.as_fd(), PollFlags::POLLIN));
        }
        let outputs = [&self.stdout, &self.stderr]
            .into_iter()
            .filter(|_| self.may_read())
            .filter_map(|output| output.wanted(has_room));
        fds.extend(outputs.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        fds.extend(
            self.input
                .wanted()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)),
        );
    }

    /// When time must be looked at next.
    pub(crate) fn due(&self) -> Option<Moment> {
        match self.stage {
            Stage::Running { until } => until,
            Stage::Terminating { until } | Stage::Killing { until } => Some(until),
            Stage::Ended(_) | Stage::Failed(_) | Stage::Over => None,
        }
    }

    /// Does what has become due.
    pub(crate) fn look_at_time(&mut self, now: Moment) -> Result<(), Unsupervised> {
        if self.due().is_none_or(|due| now < due) {
            return Ok(());
        }
        match self.stage {
            Stage::Running { .. } => {
                self.reasons.timed_out = true;
                self.signal(SIGTERM);
                self.stage = Stage::Terminating {
                    until: now.after(self.grace),
                };
            }
            Stage::Terminating { .. } => {
                self.kill_now();
            }
            Stage::Killing { .. } => return Err(Unsupervised),
            Stage::Ended(_) | Stage::Failed(_) | Stage::Over => {}
        }
        Ok(())
    }

    /// Moves what can be moved without waiting. Whether the run is over and can be forgotten.
    pub(crate) fn go_on(
        &mut self,
        connection: &mut Connection,
        around: &Surroundings,
        buffer: &mut [u8],
    ) -> Result<bool, Trouble> {
        self.hear(connection)?;
        self.input.flush();
        if let Some(credit) = self.input.owed_credit() {
            connection.send(FromInit::Credit {
                stream: self.stream,
                credit,
            })?;
        }
        self.drain(Channel::Stdout, connection, buffer)?;
        self.drain(Channel::Stderr, connection, buffer)?;
        let written = self.stdout.written() + self.stderr.written();
        if written > self.kill_bytes && self.kill_now() {
            self.reasons.output_limit = true;
        }
        self.finish(connection, around)
    }

    fn hear(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        while self.is_supervised() {
            let report = self.ends.hear_supervisor()?;
            // Looked at later than the end, which cannot come before it.
            if self.is_expected() {
                self.hear_program(connection)?;
            }
            match report {
                Some(Report::Ended(ended)) if self.is_supervised() => self.stage = Stage::Ended(ended),
                Some(Report::Resting(others)) => self.resting = Some(others),
                Some(Report::Ended(_)) | None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Hears whether the program runs.
    fn hear_program(&mut self, connection: &mut Connection) -> Result<(), Trouble> {
        match self.ends.hear_program()? {
            Heard::Nothing => {}
            Heard::Failed(failure) => self.stage = Stage::Failed(failure),
            Heard::Runs => {
                let now = Moment::now();
                self.is_started = true;
                // A kill or a timeout before that stays what it is.
                if let Stage::Running { until } = &mut self.stage {
                    *until = self.timeout.map(|timeout| now.after(timeout));
                }
                let (stream, at_us) = (self.stream, now.micros());
                connection.send(FromInit::Started { stream, at_us })?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, channel: Channel, connection: &mut Connection, buffer: &mut [u8]) -> Result<(), Lost> {
        if !self.may_read() {
            return Ok(());
        }
        let (stream, is_last) = (self.stream, matches!(self.stage, Stage::Ended(_)));
        let output = self.output(channel);
        loop {
            if output.wanted(connection.has_room()).is_none() {
                return Ok(());
            }
            let read_before = output.written();
            let data = if is_last {
                output.read_last(buffer)
            } else {
                output.read(buffer)
            };
            if let Some(data) = data {
                connection.send(FromInit::Output { stream, channel, data })?;
            }
            // A program that writes without end must not keep the loop from everything else.
            if !is_last || output.written() == read_before {
                return Ok(());
            }
        }
    }

    fn finish(&mut self, connection: &mut Connection, around: &Surroundings) -> Result<bool, Trouble> {
        let stream = self.stream;
        match &self.stage {
            Stage::Failed(failure) => {
                let failure = failure.clone();
                connection.send(FromInit::Failed { stream, failure })?;
                self.stage = Stage::Over;
                return Ok(true);
            }
            Stage::Ended(_) => {}
            _ => return Ok(false),
        }
        for channel in [Channel::Stdout, Channel::Stderr] {
            let output = self.output(channel);
            if !output.is_closed() {
                return Ok(false);
            }
            loop {
                if !connection.has_room() {
                    return Ok(false);
                }
                let message = match output.rest() {
                    Rest::Cut(dropped) => FromInit::Cut {
                        stream,
                        channel,
                        dropped,
                    },
                    Rest::Piece(data) => FromInit::Output { stream, channel, data },
                    Rest::Blocked => return Ok(false),
                    Rest::Done => break,
                };
                connection.send(message)?;
            }
        }
        if let Stage::Ended(ended) = std::mem::replace(&mut self.stage, Stage::Over) {
            let exit = Box::new(self.exit(ended, &around.cgroup.read()));
            connection.send(FromInit::Exit { stream, exit })?;
        }
        Ok(true)
    }

    fn exit(&self, ended: Ended, after: &Counters) -> Exit {
        let Reasons {
            timed_out,
            output_limit,
            killed,
        } = self.reasons;
        let was_ours = timed_out || output_limit || killed;
        let was_killed = ended.signal == Some(SIGKILL) && !was_ours;
        let counted = self.before.cpu_us_until(after).filter(|_| self.was_alone);
        Exit {
            code: ended.code,
            signal: ended.signal,
            timed_out,
            output_limit,
            killed,
            oom: self.before.oom_until(after, self.was_alone, was_killed),
            // A process whose parent ignores its end is missing in the sum that the parent is told.
            cpu_us: counted.unwrap_or(ended.cpu_us),
            memory_peak_bytes: self.before.raised_peak(after).unwrap_or(0).max(ended.largest_bytes),
            wall_us: u64::try_from(ended.at.since(self.begun).as_micros()).unwrap_or(u64::MAX),
            full_mounts: ended.full_mounts,
            stdout: self.stdout.totals(),
            stderr: self.stderr.totals(),
        }
    }

    /// Whether there was something to kill that was not being killed already.
    fn kill_now(&mut self) -> bool {
        let is_new = matches!(self.stage, Stage::Running { .. } | Stage::Terminating { .. });
        if is_new {
            self.command(Command::Kill);
            self.stage = Stage::Killing {
                until: Moment::now().after(KILL_TAKES_MAX),
            };
        }
        is_new
    }

    /// Not yet when nobody heard of the program, and no longer when it wrote too much: it waits for its end then.
    fn may_read(&self) -> bool {
        self.is_started && !(self.reasons.output_limit && self.is_supervised())
    }

    fn is_supervised(&self) -> bool {
        matches!(
            self.stage,
            Stage::Running { .. } | Stage::Terminating { .. } | Stage::Killing { .. }
        )
    }

    /// Whether it is not known yet that the program runs.
    fn is_expected(&self) -> bool {
        self.is_supervised() && !self.is_started
    }

    fn command(&self, command: Command) {
        if self.is_supervised() {
            let packet = serde_json::to_vec(&command).unwrap_or_default();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            // A supervisor that is gone is found when it is heard next.
            whatever(send(self.ends.socket.as_raw_fd(), &packet, flags));
        }
    }
}
