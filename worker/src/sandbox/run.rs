//! A program in a sandbox: how it is asked for, followed and ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hothouse_protocol::{Channel, FRAME_COST, PAYLOAD_MAX, Rested, Run, TerminalSize, ToInit, WINDOW, cost};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::Error;
use super::exit::Exit;
use super::link::{Event, Link, Port};
use super::spec::{Input, RunSpec};

const SIGCONT: i32 = 18;
const STDIN_CHUNK: usize = 32 * 1024;
const GRANT_AT: u32 = WINDOW / 4;

/// Something that a program wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// To its standard output.
    Stdout(Bytes),
    /// To its standard error.
    Stderr(Bytes),
    /// Here bytes are missing; what follows on this channel is the tail.
    Cut {
        /// Which stream.
        channel: Channel,
        /// How many bytes.
        dropped: u64,
    },
}

/// A program that was started. Dropping it kills it with all its descendants.
#[derive(Debug)]
pub struct Running {
    link: Arc<Link>,
    port: Port,
    owed: [u32; 2],
    received: [u64; 2],
    end: Option<Result<Exit, Error>>,
    /// By init's clock.
    asked_at: Duration,
    began_ago: Duration,
}

impl Running {
    /// Sends the request and waits until the program runs. The second value feeds its input, when that is known.
    pub(super) async fn start(
        link: &Arc<Link>,
        spec: RunSpec,
    ) -> Result<(Self, Option<impl Future<Output = ()> + Send + use<>>), Error> {
        let (run, input) = spec.into_wire();
        let running = Self::launch(link, run).await?;
        let feed = match input {
            Input::Bytes(bytes) => {
                let stdin = running.stdin();
                // A program that ends without reading its input is no failure; it shows in its exit.
                Some(async move { drop(stdin.write_all_and_close(bytes).await) })
            }
            Input::None | Input::Stream => None,
        };
        Ok((running, feed))
    }

    /// Sends a request of any kind and waits until it runs.
    pub(super) async fn launch(link: &Arc<Link>, run: Run) -> Result<Self, Error> {
        let mut running = Self::ask(link, run).await?;
        running.begin().await?;
        Ok(running)
    }

    /// Sends a request of any kind. Its input may follow at once; all else waits until it [runs](Self::begin).
    pub(super) async fn ask(link: &Arc<Link>, run: Run) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(&run).map_or(usize::MAX, |text| text.len());
        if bytes > PAYLOAD_MAX {
            return Err(Error::TooLarge { bytes });
        }
        let port = link.port()?;
        let stream = port.stream;
        let running = Self {
            link: Arc::clone(link),
            port,
            owed: [0; 2],
            received: [0; 2],
            end: None,
            asked_at: since_boot(),
            began_ago: Duration::ZERO,
        };
        link.send(ToInit::Run {
            stream,
            run: Box::new(run),
        })
        .await?;
        Ok(running)
    }

    /// Waits until it runs.
    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        match self.port.events.recv().await {
            Some(Event::Started(at_us)) => {
                // An init that lies cannot have begun before it was asked, nor later than it said so.
                let at = Duration::from_micros(at_us).max(self.asked_at);
                self.began_ago = since_boot().saturating_sub(at);
                Ok(())
            }
            Some(Event::Failed(failure)) => Err(Error::Refused(failure)),
            Some(_) | None => Err(self.link.lost()),
        }
    }

    /// How long ago the program had begun when [`super::Sandbox::run`] answered.
    pub const fn began_ago(&self) -> Duration {
        self.began_ago
    }

    /// The next piece of output, or none when there is no more and [`Running::wait`] answers at once. Cancel-safe.
    pub async fn next(&mut self) -> Option<Output> {
        if self.end.is_some() {
            return None;
        }
        if let Err(error) = self.grant().await {
            self.end = Some(Err(error));
            return None;
        }
        match self.port.events.recv().await {
            Some(Event::Output(channel, data)) => {
                let index = channel as usize;
                self.owed[index] = self.owed[index].saturating_add(cost(data.len()));
                self.received[index] += data.len() as u64;
                return Some(match channel {
                    Channel::Stdout => Output::Stdout(data),
                    Channel::Stderr => Output::Stderr(data),
                });
            }
            Some(Event::Cut(channel, dropped)) => return Some(Output::Cut { channel, dropped }),
            Some(Event::Exit(exit)) => self.end = Some(self.account(*exit)),
            Some(Event::Failed(failure)) => self.end = Some(Err(Error::Refused(failure))),
            Some(Event::Started(_)) | None => self.end = Some(Err(self.link.lost())),
        }
        None
    }

    /// Waits for the end; output that nobody read is thrown away.
    ///
    /// # Errors
    /// [`Error::Lost`] when the sandbox is gone, [`Error::Incomplete`] when output was lost on the way.
    pub async fn wait(mut self) -> Result<Exit, Error> {
        while self.next().await.is_some() {}
        self.end.take().unwrap_or_else(|| Err(self.link.lost()))
    }

    /// A handle for the program's input, good as long as it runs.
    pub fn stdin(&self) -> Stdin {
        let credit = Arc::clone(&self.port.input_credit);
        Stdin {
            link: Arc::clone(&self.link),
            stream: self.port.stream,
            credit,
        }
    }

    /// Sends input, in order; waits while the program does not read.
    ///
    /// # Errors
    /// As [`Stdin::write`].
    pub async fn write_stdin(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        self.stdin().write(data).await
    }

    /// Ends the input.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn close_stdin(&self) -> Result<(), Error> {
        self.stdin().close().await
    }

    /// Sends a signal, by its number, to the program's process group.
    ///
    /// # Errors
    /// [`Error::Lost`]. A program that has ended is no error.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.link
            .send(ToInit::Signal {
                stream: self.port.stream,
                signal,
            })
            .await
    }

    /// Kills the program with all its descendants; [`Running::wait`] tells when nothing is left.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn kill(&self) -> Result<(), Error> {
        self.link
            .send(ToInit::Kill {
                stream: self.port.stream,
                discard: false,
            })
            .await
    }

    /// Stops the program where it is, and kills everything else in the sandbox but init. Only an init that
    /// [can](hothouse_protocol::About::can_rest) is asked.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::NoAnswer`] after `limit`.
    pub async fn rest(&self, limit: Duration) -> Result<Rested, Error> {
        let rested = timeout(limit, self.link.rest(self.port.stream)).await;
        rested.map_err(|_elapsed| Error::NoAnswer {
            to: "rest",
            after: limit,
        })?
    }

    /// Lets a program that rests go on.
    ///
    /// # Errors
    /// [`Error::Lost`]. A program that has ended is no error.
    pub async fn wake(&self) -> Result<(), Error> {
        self.signal(SIGCONT).await
    }

    /// Tells the program's terminal another size.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), Error> {
        self.link
            .send(ToInit::Resize {
                stream: self.port.stream,
                size,
            })
            .await
    }

    async fn grant(&mut self) -> Result<(), Error> {
        for channel in [Channel::Stdout, Channel::Stderr] {
            let owed = &mut self.owed[channel as usize];
            if *owed >= GRANT_AT {
                // Nothing is forgotten when this is dropped while it waits for the place.
                let place = self.link.reserve().await?;
                let credit = std::mem::take(owed);
                self.link.widen(self.port.stream, channel, credit);
                place.send(ToInit::Credit {
                    stream: self.port.stream,
                    channel,
                    credit,
                });
            }
        }
        Ok(())
    }

    fn account(&self, exit: hothouse_protocol::Exit) -> Result<Exit, Error> {
        for (totals, received) in [exit.stdout, exit.stderr].into_iter().zip(self.received) {
            if totals.sent != received {
                return Err(Error::Incomplete {
                    sent: totals.sent,
                    received,
                });
            }
        }
        Ok(Exit::from(exit))
    }
}

/// The time of init's clock, which is the kernel's and so everybody's.
fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

impl Drop for Running {
    fn drop(&mut self) {
        self.link.abandon(self.port.stream);
    }
}

/// The input of a running program.
#[derive(Debug, Clone)]
pub struct Stdin {
    link: Arc<Link>,
    stream: u32,
    credit: Arc<Semaphore>,
}

impl Stdin {
    /// Sends input, in order; waits while the program does not read. Bytes for a program that ended are dropped.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn write(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        let mut data = data.into();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(STDIN_CHUNK));
            let permits = self.credit.acquire_many(cost(piece.len())).await;
            let Ok(permits) = permits else {
                return if self.link.is_alive() {
                    Ok(())
                } else {
                    Err(self.link.lost())
                };
            };
            permits.forget();
            self.link
                .send(ToInit::Stdin {
                    stream: self.stream,
                    data: piece,
                    is_end: false,
                })
                .await?;
        }
        Ok(())
    }

    /// Ends the input.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn close(&self) -> Result<(), Error> {
        self.link
            .send(ToInit::Stdin {
                stream: self.stream,
                data: Bytes::new(),
                is_end: true,
            })
            .await
    }

    /// Sends everything, then the end.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn write_all_and_close(&self, data: impl Into<Bytes>) -> Result<(), Error> {
        self.write(data).await?;
        self.close().await
    }
}

const _: () = assert!(STDIN_CHUNK + (FRAME_COST as usize) < WINDOW as usize);
