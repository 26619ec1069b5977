//! The two tasks of a connection, and what they share with those who ask.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hothouse_protocol::{
    About, Channel, Decoder, Failure, Frame, FromInit, Rested, TUNNEL_BIT, ToInit, Token, WINDOW, WINDOW_FRAMES,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::error::{Error, Lost};
use crate::driver::Pipe;

// Requests that wait for the pipe; who asks more waits too.
const OUTGOING: usize = 64;
const READ_BYTES: usize = 256 * 1024;
// Frames that are written together.
const BATCH_BYTES: usize = 128 * 1024;
// Both windows full, and the few frames that need no window.
const EVENTS: usize = 2 * WINDOW_FRAMES + 8;

// Words for init that nobody waits for: more means that an init does nothing but open tunnels.
const ABANDONED_MAX: usize = 1024;

mod tunnels;
mod waiting;

use waiting::{Listener, Waiting};

/// What comes to a run.
#[derive(Debug)]
pub(super) enum Event {
    /// Since when, in microseconds of `CLOCK_BOOTTIME`, as init says.
    Started(u64),
    Output(Channel, Bytes),
    Cut(Channel, u64),
    Exit(Box<hothouse_protocol::Exit>),
    Failed(Failure),
}

/// A run's place at the link.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) stream: u32,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) input_credit: Arc<Semaphore>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    outgoing: mpsc::Sender<ToInit>,
    next_stream: AtomicU32,
    next_nonce: AtomicU64,
    opened: Instant,
    // When something came from init last, in microseconds since then.
    heard_us: AtomicU64,
    waiting: Mutex<Waiting>,
    // What to tell init of runs and tunnels that somebody dropped, who could not wait for a place in line.
    abandoned: Mutex<Vec<ToInit>>,
    has_abandoned: Notify,
    lost: watch::Sender<Option<Lost>>,
}

impl Link {
    /// Starts the two tasks.
    pub(super) fn open(pipe: Pipe, token: Token) -> (Arc<Self>, oneshot::Receiver<About>, JoinSet<()>) {
        let (outgoing, requests) = mpsc::channel(OUTGOING);
        let (hello, about) = oneshot::channel();
        let link = Arc::new(Self {
            outgoing,
            next_stream: AtomicU32::new(1),
            next_nonce: AtomicU64::new(1),
            opened: Instant::now(),
            heard_us: AtomicU64::new(0),
            waiting: Mutex::new(Waiting {
                hello: Some(hello),
                ..Waiting::default()
            }),
            abandoned: Mutex::default(),
            has_abandoned: Notify::new(),
            lost: watch::Sender::new(None),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&link).read(pipe.reader, Decoder::expecting(token)));
        tasks.spawn(Arc::clone(&link).write(pipe.writer, requests, token));
        (link, about, tasks)
    }

    /// Puts a message in line.
    pub(super) async fn send(&self, message: ToInit) -> Result<(), Error> {
        self.reserve().await?.send(message);
        Ok(())
    }

    /// Waits for a place in line.
    pub(super) async fn reserve(&self) -> Result<mpsc::Permit<'_, ToInit>, Error> {
        let mut lost = self.lost.subscribe();
        tokio::select! {
            biased;
            // The writer may be stuck in a pipe that nobody reads when the other direction ends.
            _ = lost.wait_for(Option::is_some) => Err(self.lost()),
            permit = self.outgoing.reserve() => permit.map_err(|_closed| self.lost()),
        }
    }

    /// A new stream for a run.
    pub(super) fn port(&self) -> Result<Port, Error> {
        let stream = self.next_stream();
        let (sender, events) = mpsc::channel(EVENTS);
        let input_credit = Arc::new(Semaphore::new(WINDOW as usize));
        let listener = Listener {
            events: sender,
            input_credit: Arc::clone(&input_credit),
            windows: [WINDOW; 2],
        };
        let mut waiting = self.waiting();
        if !self.is_alive() {
            return Err(self.lost());
        }
        waiting.runs.insert(stream, listener);
        Ok(Port {
            stream,
            events,
            input_credit,
        })
    }

    /// Init may send so much more of a run's output.
    pub(super) fn widen(&self, stream: u32, channel: Channel, credit: u32) {
        self.waiting().widen(stream, channel, credit);
    }

    /// Nobody waits for this run any more: it is killed, and its output dropped.
    pub(super) fn abandon(&self, stream: u32) {
        if self.waiting().runs.remove(&stream).is_some() {
            self.tell_later([ToInit::Kill { stream, discard: true }]);
        }
    }

    fn tell_later(&self, messages: impl IntoIterator<Item = ToInit>) {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        abandoned.extend(messages);
        self.has_abandoned.notify_one();
    }

    /// Asks and waits for the answer.
    pub(super) async fn ping(&self) -> Result<(), Error> {
        let nonce = self.next_nonce.fetch_add(1, Ordering::Relaxed);
        let (sender, pong) = oneshot::channel();
        self.waiting().pongs.insert(nonce, sender);
        self.send(ToInit::Ping { nonce }).await?;
        self.answer(pong).await
    }

    /// Asks for an answer that nobody waits for, unless enough is asked already.
    pub(super) fn rouse(&self) {
        let nonce = self.next_nonce.fetch_add(1, Ordering::Relaxed);
        drop(self.outgoing.try_send(ToInit::Ping { nonce }));
    }

    /// How long ago something came from init.
    pub(super) fn silent_for(&self) -> Duration {
        let heard = Duration::from_micros(self.heard_us.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(heard)
    }

    /// Kills everything and waits until it is done.
    pub(super) async fn kill_all(&self) -> Result<(), Error> {
        let stream = self.next_stream();
        let (sender, done) = oneshot::channel();
        self.waiting().done.insert(stream, sender);
        self.send(ToInit::KillAll { stream }).await?;
        self.answer(done).await
    }

    /// Has everything killed and deleted that programs left, and waits for the proof.
    pub(super) async fn reset(&self) -> Result<Result<(), Failure>, Error> {
        let stream = self.next_stream();
        let (sender, done) = oneshot::channel();
        self.waiting().resets.insert(stream, sender);
        self.send(ToInit::Reset { stream }).await?;
        self.answer(done).await
    }

    /// Lets a program rest and waits until nothing else runs.
    pub(super) async fn rest(&self, stream: u32) -> Result<Rested, Error> {
        let (sender, rested) = oneshot::channel();
        self.waiting().rested.insert(stream, sender);
        self.send(ToInit::Rest { stream }).await?;
        self.answer(rested).await
    }

    /// Whether the pipe stands.
    pub(super) fn is_alive(&self) -> bool {
        self.lost.borrow().is_none()
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) -> Lost {
        let mut lost = self.lost.subscribe();
        let found = lost.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone()).unwrap_or(Lost::Closed)
    }

    /// The error for who asks after the end.
    pub(super) fn lost(&self) -> Error {
        Error::Lost(self.lost.borrow().clone().unwrap_or(Lost::Closed))
    }

    async fn answer<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, Error> {
        // An answer that was registered after the end has no sender that could be dropped.
        let mut lost = self.lost.subscribe();
        tokio::select! {
            biased;
            answered = answer => answered.map_err(|_closed| self.lost()),
            _ = lost.wait_for(Option::is_some) => Err(self.lost()),
        }
    }

    fn next_stream(&self) -> u32 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first reason counts. Everybody who waits hears that nothing comes any more.
    pub(super) fn end(&self, why: Lost) {
        self.lost.send_if_modified(|lost| {
            let is_first = lost.is_none();
            lost.get_or_insert(why);
            is_first
        });
        let waiting = std::mem::take(&mut *self.waiting());
        for listener in waiting.runs.values() {
            listener.input_credit.close();
        }
    }

    async fn write(
        self: Arc<Self>,
        mut pipe: Box<dyn AsyncWrite + Send + Unpin>,
        mut requests: mpsc::Receiver<ToInit>,
        token: Token,
    ) {
        let _ends = EndsWith(Arc::clone(&self));
        let mut wire = BytesMut::new();
        loop {
            let message = tokio::select! {
                message = requests.recv() => message,
                () = self.has_abandoned.notified() => None,
            };
            let abandoned = std::mem::take(&mut *self.abandoned.lock().unwrap_or_else(PoisonError::into_inner));
            let mut encoded = Ok(());
            let mut encode = |message| {
                let frame = Frame::from(message);
                encoded = encoded.clone().and_then(|()| frame.encode(&token, &mut wire));
                wire.len()
            };
            let mut bytes = message.map_or(0, &mut encode);
            // What was asked for before something was abandoned goes before the word of that: a kill before its run
            // would kill nothing, and a close before its data would cut it.
            let mut first = if abandoned.is_empty() { 0 } else { OUTGOING };
            while (bytes < BATCH_BYTES || first > 0)
                && let Ok(message) = requests.try_recv()
            {
                first = first.saturating_sub(1);
                bytes = encode(message);
            }
            for message in abandoned {
                encode(message);
            }
            if let Err(error) = encoded {
                return self.end(Lost::Refused(error));
            }
            let written = async {
                pipe.write_all_buf(&mut wire).await?;
                pipe.flush().await
            };
            if let Err(error) = written.await {
                return self.end(Lost::Failed(error.to_string()));
            }
        }
    }

    async fn read(self: Arc<Self>, mut pipe: Box<dyn AsyncRead + Send + Unpin>, mut decoder: Decoder) {
        let _ends = EndsWith(Arc::clone(&self));
        let mut wire = BytesMut::with_capacity(READ_BYTES);
        loop {
            wire.reserve(READ_BYTES);
            match pipe.read_buf(&mut wire).await {
                Ok(0) => return self.end(Lost::Closed),
                Ok(_) => self.heard_us.store(micros(self.opened.elapsed()), Ordering::Relaxed),
                Err(error) => return self.end(Lost::Failed(error.to_string())),
            }
            loop {
                let message = match decoder.decode(&mut wire) {
                    Ok(None) => break,
                    Ok(Some(frame)) => FromInit::try_from(frame),
                    Err(error) => Err(error),
                };
                if let Err(why) = message.map_err(Lost::Refused).and_then(|message| self.deliver(message)) {
                    return self.end(why);
                }
            }
        }
    }

    fn deliver(self: &Arc<Self>, message: FromInit) -> Result<(), Lost> {
        if let FromInit::Open { stream, port } = message {
            return self.open_tunnel(stream, port);
        }
        let mut waiting = self.waiting();
        match message {
            FromInit::Hello(about) => {
                let hello = waiting.hello.take().ok_or(Lost::Broken("a second hello"))?;
                drop(hello.send(about));
            }
            FromInit::Started { stream, at_us } => waiting.tell(stream, Event::Started(at_us))?,
            FromInit::Output { stream, channel, data } => waiting.output(stream, channel, data)?,
            FromInit::Cut {
                stream,
                channel,
                dropped,
            } => waiting.tell(stream, Event::Cut(channel, dropped))?,
            FromInit::Exit { stream, exit } => waiting.tell_last(stream, Event::Exit(exit))?,
            FromInit::Failed { stream, failure } => waiting.failed(stream, failure)?,
            FromInit::Credit { stream, credit } if stream & TUNNEL_BIT != 0 => waiting.tunnels.grant(stream, credit)?,
            FromInit::Credit { stream, credit } => waiting.grant(stream, credit)?,
            FromInit::Pong { nonce } => {
                let _is_awaited = waiting.pongs.remove(&nonce).is_some_and(|pong| pong.send(()).is_ok());
            }
            FromInit::Done { stream } => waiting.done(stream),
            FromInit::Rested { stream, rested } => {
                let awaited = waiting.rested.remove(&stream);
                let _is_awaited = awaited.is_some_and(|awaited| awaited.send(rested).is_ok());
            }
            FromInit::Data { stream, data, is_end } => waiting.tunnels.data(stream, data, is_end)?,
            FromInit::Close { stream } => {
                waiting.tunnels.close(stream);
            }
            FromInit::Open { .. } => {}
        }
        Ok(())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Ends the link when a task of it does, however that happens: when its sandbox is dropped, the tasks are.
struct EndsWith(Arc<Link>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.end(Lost::Closed);
    }
}
