//! The Python interpreter of a turn: one process, so that what a program defines is there for the next.
//!
//! Programs go in as lines of JSON; what they print comes out live, and a line with a mark that no program can guess ends
//! each answer. An interpreter that dies, or is killed because a program takes too long, takes its state along: the next
//! call begins with a new one, and the model is told.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::super::native::ToolOutcome;
use super::super::text::Decoder;
use super::place::{Place, note};
use crate::sandbox::{self, Exit, Input, Output, RunSpec, Running};

/// The program that runs programs.
const DRIVER: &str = include_str!("python.py");

/// How long a program that was interrupted may take to end before its interpreter is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes that one call may print before its interpreter is killed.
const PRINT_MAX: u64 = 64 << 20;

const SIGINT: i32 = 2;

const STATE_LOST: &str = "[variables and imports are gone]";

/// The interpreter, once there is one. Calls run one after another, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Python(Mutex<Option<Interpreter>>);

#[derive(Debug)]
struct Interpreter {
    running: Running,
    /// What begins the line that ends an answer.
    mark: String,
    decoder: Decoder,
}

/// How an answer ended.
enum End {
    /// The program ended with this code.
    Code(i32),
    /// It took too long and was interrupted; the interpreter goes on.
    Interrupted,
    /// The interpreter is gone.
    Gone(Box<Exit>),
    /// It was killed.
    Killed(&'static str),
}

impl Python {
    /// Ends the interpreter.
    pub(super) async fn end(&self) {
        drop(self.0.lock().await.take());
    }

    /// Runs a program and shows what it prints while it does. Dropped halfway, it takes the interpreter along.
    pub(super) async fn run(
        &self,
        place: &Place<'_>,
        code: &str,
        timeout: Duration,
    ) -> Result<ToolOutcome, sandbox::Error> {
        let mut slot = self.0.lock().await;
        let interpreter = match slot.take() {
            Some(interpreter) => interpreter,
            None => Interpreter::start(place).await?,
        };
        let line = format!("{}\n", serde_json::Value::from(code));
        interpreter.running.write_stdin(line).await?;
        let mut kept = Kept::default();
        let (end, interpreter) = interpreter.answer(place, timeout, &mut kept).await?;
        *slot = interpreter;
        let seconds = timeout.as_secs();
        let (is_error, remark) = match end {
            End::Code(0) => (false, None),
            End::Code(code) => (true, Some(format!("[exit code {code}]"))),
            End::Interrupted => (true, Some(format!("[interrupted: it ran longer than {seconds} s]"))),
            End::Gone(exit) => {
                let how = note(&exit, timeout).unwrap_or_else(|| "[it ended the interpreter]".to_owned());
                (true, Some(format!("{how}\n{STATE_LOST}")))
            }
            End::Killed(why) => (true, Some(format!("[killed: {why}]\n{STATE_LOST}"))),
        };
        let mut output = kept.finish();
        if let Some(remark) = remark {
            if !output.is_empty() && !output.ends_with('\n') {
                output.push('\n');
            }
            output.push_str(&remark);
        }
        Ok(ToolOutcome { output, is_error })
    }
}

impl Interpreter {
    async fn start(place: &Place<'_>) -> Result<Self, sandbox::Error> {
        let mark = format!("hothouse-{}", Uuid::new_v4().simple());
        let spec = RunSpec {
            env: place.env.to_vec(),
            stdin: Input::Stream,
            timeout: None,
            keep_bytes: None,
            kill_bytes: None,
            ..RunSpec::new(["python3", "-c", DRIVER, &mark])
        };
        Ok(Self {
            running: place.sandbox.run(spec).await?,
            mark: format!("\n{mark} "),
            decoder: Decoder::default(),
        })
    }

    /// Reads one answer. The interpreter is there afterwards, unless it died or had to be killed.
    async fn answer(
        mut self,
        place: &Place<'_>,
        timeout: Duration,
        kept: &mut Kept,
    ) -> Result<(End, Option<Self>), sandbox::Error> {
        let (mut deadline, mut was_interrupted, mut bytes) = (Instant::now() + timeout, false, 0_u64);
        let mut pending = String::new();
        loop {
            match timeout_at(deadline, self.running.next()).await {
                Ok(Some(Output::Stdout(piece) | Output::Stderr(piece))) => {
                    bytes += u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    pending.push_str(&self.decoder.push(&piece));
                }
                Ok(Some(Output::Cut { .. })) => {}
                Ok(None) => {
                    pending.push_str(&self.decoder.finish());
                    kept.push(&pending, place);
                    let exit = self.running.wait().await?;
                    return Ok((End::Gone(Box::new(exit)), None));
                }
                Err(_) if was_interrupted => {
                    kept.push(&pending, place);
                    return Ok((End::Killed("it ran too long and could not be interrupted"), None));
                }
                Err(_) => {
                    self.running.signal(SIGINT).await?;
                    (was_interrupted, deadline) = (true, Instant::now() + GRACE);
                }
            }
            if let Some(code) = take_end(&mut pending, &self.mark) {
                kept.push(&pending, place);
                let end = if was_interrupted {
                    End::Interrupted
                } else {
                    End::Code(code)
                };
                return Ok((end, Some(self)));
            }
            let rest = pending.split_off(shown(&pending, &self.mark));
            kept.push(&std::mem::replace(&mut pending, rest), place);
            if bytes > PRINT_MAX {
                return Ok((End::Killed("it printed too much"), None));
            }
        }
    }
}

/// The exit code behind the mark, once that line is there whole; the line is taken away.
fn take_end(pending: &mut String, mark: &str) -> Option<i32> {
    let (said, rest) = pending.split_once(mark)?;
    let (code, _) = rest.split_once('\n')?;
    let (code, said) = (code.trim().parse().unwrap_or(1), said.len());
    pending.truncate(said);
    Some(code)
}

/// How much of the text cannot be the beginning of the line that ends the answer.
fn shown(pending: &str, mark: &str) -> usize {
    if let Some(at) = pending.find(mark) {
        return at;
    }
    let last = pending
        .rfind('\n')
        .filter(|at| mark.starts_with(pending.get(*at..).unwrap_or_default()));
    last.unwrap_or(pending.len())
}

/// Head and tail of what a program printed.
#[derive(Debug, Default)]
struct Kept {
    head: String,
    tail: String,
    dropped: usize,
}

impl Kept {
    /// Bytes of each: half of what is kept of any program.
    const HALF: usize = 128 << 10;

    fn push(&mut self, text: &str, place: &Place<'_>) {
        if text.is_empty() {
            return;
        }
        place.sink.tool_output(place.call_id, text);
        let room = text.floor_char_boundary(Self::HALF.saturating_sub(self.head.len()).min(text.len()));
        let (head, rest) = text.split_at(if self.tail.is_empty() { room } else { 0 });
        self.head.push_str(head);
        self.tail.push_str(rest);
        if self.tail.len() > 2 * Self::HALF {
            let cut = self.tail.ceil_char_boundary(self.tail.len() - Self::HALF);
            self.tail.drain(..cut);
            self.dropped += cut;
        }
    }

    fn finish(self) -> String {
        match self.dropped {
            0 => self.head + &self.tail,
            dropped => format!("{}\n[{dropped} bytes left out]\n{}", self.head, self.tail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_answer_is_found_in_pieces_and_never_shown() {
        let mark = "\nm1 ";
        for (text, shows) in [
            ("abc", 3),
            ("abc\n", 3),
            ("abc\nm", 3),
            ("abc\nm1", 3),
            ("abc\nmm", 6),
            ("a\nb\nm1 0", 3),
        ] {
            assert_eq!(shown(text, mark), shows, "{text:?}");
            assert_eq!(take_end(&mut text.to_owned(), mark), None, "{text:?}");
        }
        let mut text = "a\nb\nm1 3\n".to_owned();
        assert_eq!(take_end(&mut text, mark), Some(3));
        assert_eq!(text, "a\nb");
    }
}
