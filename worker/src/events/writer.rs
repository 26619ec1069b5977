//! The task that numbers an attempt's events and writes them.

use std::time::{Duration, Instant};

use common::clock::Clock;
use common::ids::{JobId, TenantId, WorkerId};
use common::job::event::{Event, EventBody, UNWRITTEN_MAX};
use common::queue::{Append, Appended};
use common::store::events::Chunk;

use super::buffer::{Said, Sink, size};
use super::outlets::{Outlets, Written};

/// Least time between two flushes to Redis, unless there is much to say.
const FLUSH_AFTER: Duration = Duration::from_millis(25);

/// Bytes that go to Redis at once.
const FLUSH_FROM: usize = 1 << 10;

/// Bytes after which a chunk goes to Postgres.
const CHUNK_FROM: usize = 256 << 10;

/// Longest that an event is in Redis alone.
const CHUNK_AFTER: Duration = Duration::from_secs(5);

/// Pause before a chunk that Postgres did not take is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Longest pause of a log that waits for Postgres.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// Most bytes of an attempt's log. What comes after is left out and said to be.
const LOG_MAX: usize = 64 << 20;

/// Whose log, and where it goes.
#[derive(Clone, Debug)]
pub struct LogTarget {
    /// Whose job.
    pub tenant_id: TenantId,
    /// The job.
    pub job_id: JobId,
    /// The fence.
    pub attempt: u32,
    /// The fence.
    pub worker_id: WorkerId,
    /// The live tail and the written part.
    pub outlets: Outlets,
    /// When things happen.
    pub clock: Clock,
}

/// What is left to write with the attempt's end.
#[derive(Clone, Debug, Default)]
pub struct Unwritten {
    /// Events that Postgres does not have, in order; empty when the attempt said nothing.
    pub events: Vec<Event>,
    /// Number of the attempt's last event.
    pub last_seq: u64,
    /// Whether the attempt said anything at all.
    pub spoke: bool,
}

pub(super) struct Writer {
    target: LogTarget,
    sink: Sink,
    started: Option<Event>,
    unwritten: Vec<Event>,
    bytes: usize,
    bytes_total: usize,
    since: Instant,
    /// When a chunk that Postgres did not take may be tried again.
    retry_at: Instant,
    flushed: Instant,
    last: u64,
    written: u64,
    appended: u64,
    spoke: bool,
    lost: bool,
}

impl Writer {
    pub(super) fn new(target: LogTarget, started: Event, sink: Sink) -> Self {
        Self {
            last: started.seq,
            written: started.seq - 1,
            appended: started.seq - 1,
            target,
            sink,
            started: Some(started),
            unwritten: Vec::new(),
            bytes: 0,
            bytes_total: 0,
            since: Instant::now(),
            retry_at: Instant::now(),
            flushed: Instant::now().checked_sub(FLUSH_AFTER).unwrap_or_else(Instant::now),
            spoke: false,
            lost: false,
        }
    }

    pub(super) async fn run(mut self) -> Unwritten {
        loop {
            self.wait().await;
            if self.is_full() && !self.sink.is_closed() {
                // Numbers may not run further ahead of Postgres; what is said meanwhile waits, joined, in the sink.
                self.write().await;
                if self.is_full() {
                    tokio::time::sleep(FULL_PAUSE).await;
                    continue;
                }
            }
            let taken = self.sink.take();
            self.number(taken.said);
            if taken.closed {
                return Unwritten {
                    events: self.unwritten,
                    last_seq: self.last,
                    spoke: self.spoke,
                };
            }
            self.append().await;
            self.flushed = Instant::now();
            if self.is_chunk_due() {
                self.write().await;
            }
        }
    }

    /// Until something was said, or a chunk is due. The first words go out at once; what follows them waits for company
    /// until the last flush is long enough ago.
    async fn wait(&self) {
        if self.sink.bytes() == 0 && !self.sink.is_closed() {
            let due = CHUNK_AFTER.saturating_sub(self.since.elapsed());
            tokio::select! {
                () = self.sink.changed() => {}
                () = tokio::time::sleep(due), if !self.unwritten.is_empty() => return,
            }
        }
        let deadline = self.flushed + FLUSH_AFTER;
        while self.sink.bytes() < FLUSH_FROM && !self.sink.is_closed() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::select! {
                () = self.sink.changed() => {}
                () = tokio::time::sleep(left) => return,
            }
        }
    }

    fn number(&mut self, said: Vec<Said>) {
        if said.is_empty() {
            return;
        }
        self.spoke = true;
        if self.unwritten.is_empty() {
            self.since = Instant::now();
        }
        self.unwritten.extend(self.started.take());
        for (at, body) in said {
            let bytes = size(&body);
            let was_full = self.bytes_total > LOG_MAX;
            self.bytes_total += bytes;
            let body = match self.bytes_total > LOG_MAX {
                true if was_full => continue,
                true => EventBody::Status {
                    phase: "log_truncated".to_owned(),
                    detail: Some(format!(
                        "the log is over {} MiB: what follows is left out",
                        LOG_MAX >> 20
                    )),
                },
                false => body,
            };
            self.last += 1;
            self.bytes += bytes;
            self.unwritten.push(Event {
                seq: self.last,
                at,
                attempt: self.target.attempt,
                body,
            });
        }
    }

    /// Appends to Redis what it does not have; while it is away, the next flush does.
    async fn append(&mut self) {
        let from = self.unwritten.partition_point(|event| event.seq <= self.appended);
        if from == self.unwritten.len() || self.lost {
            return;
        }
        let mut outcome = self.append_from(from).await;
        if outcome == Some(Appended::NeedsSeed) {
            outcome = self.append_from(0).await;
        }
        match outcome {
            Some(Appended::Ok) => self.appended = self.last,
            Some(Appended::Lost) => self.lost = true,
            Some(Appended::Unknown | Appended::NeedsSeed) | None => {}
        }
    }

    async fn append_from(&self, from: usize) -> Option<Appended> {
        let (target, events) = (&self.target, self.unwritten.get(from..)?);
        let packed = Append::pack(events)
            .inspect_err(|error| tracing::error!(%error, job_id = %target.job_id, "events cannot be appended"));
        let log = Append {
            tenant_id: target.tenant_id,
            job_id: target.job_id,
            attempt: target.attempt,
            worker_id: target.worker_id,
            written: self.written,
            first_seq: events.first()?.seq,
            events: packed.ok()?,
        };
        target.outlets.append(log).await
    }

    fn unwritten_len(&self) -> u64 {
        u64::try_from(self.unwritten.len()).unwrap_or(u64::MAX)
    }

    /// One flush may add as many events as the sink holds, so half of the allowance is kept for it.
    fn is_full(&self) -> bool {
        self.unwritten_len() >= UNWRITTEN_MAX / 2
    }

    fn is_chunk_due(&self) -> bool {
        let (many, may_try) = (self.is_full(), Instant::now() >= self.retry_at);
        may_try
            && !self.unwritten.is_empty()
            && (many || self.bytes >= CHUNK_FROM || self.since.elapsed() >= CHUNK_AFTER)
    }

    async fn write(&mut self) {
        let Some(chunk) = Chunk::pack(self.target.job_id, &self.unwritten) else {
            return;
        };
        let target = &self.target;
        match target.outlets.write(chunk, target.attempt).await {
            Written::Yes => {
                self.written = self.last;
                self.unwritten.clear();
                self.bytes = 0;
                target.outlets.trim(target.tenant_id, target.job_id, self.written).await;
            }
            // It is nobody's log any more.
            Written::Lost => {
                self.lost = true;
                self.unwritten.clear();
                self.bytes = 0;
            }
            // Not at every flush: Postgres is away, and what waits is bounded by the log's cap.
            Written::NotYet => {
                tracing::warn!(job_id = %target.job_id, "events wait for Postgres");
                (self.since, self.retry_at) = (Instant::now(), Instant::now() + RETRY_AFTER);
            }
        }
    }
}
