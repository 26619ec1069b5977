//! Watching a job to its end: what `run`, `logs -f` and `chat` have in common.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::client::{Client, Event, Follower};
use crate::interrupt::Interrupts;
use crate::output;

/// How long a job may wait before it is asked what for, and the longest pause before that is asked again.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// What Ctrl-C means for the job that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInterrupt {
    /// It is cancelled, and watched until it has ended; a second Ctrl-C leaves at once.
    Cancel,
    /// It goes on by itself.
    Leave,
}

/// How the watching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The job has ended and its last event was shown.
    Job,
    /// The user left; the job may still be running.
    Left,
}

/// What is seen of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seen<'e> {
    /// Its next event.
    Event(&'e Event),
    /// Why it is not running; not told twice.
    WaitsFor(&'e str),
}

/// Whether the job is known to wait, and when it is asked what for.
#[derive(Debug)]
struct Asking {
    is_waiting: bool,
    next: Instant,
    pause: Duration,
    told: String,
}

impl Asking {
    fn new() -> Self {
        Self {
            is_waiting: true,
            next: Instant::now() + PATIENCE.0,
            pause: PATIENCE.0,
            told: String::new(),
        }
    }

    fn heard(&mut self, kind: &str) {
        match kind {
            "queued" | "retrying" | "waiting" => *self = Self::new(),
            // They tell of what was.
            "attempt_reset" | "resume_gap" => {}
            _ => self.is_waiting = false,
        }
    }

    /// What the job says now; `None` when that was told, or it says nothing.
    fn asked(&mut self, reason: Option<String>) -> Option<&str> {
        self.pause = (self.pause * 2).min(PATIENCE.1);
        self.next = Instant::now() + self.pause;
        let reason = reason.filter(|reason| *reason != self.told)?;
        self.told = reason;
        Some(&self.told)
    }
}

/// Watches one job.
#[derive(Debug)]
pub(crate) struct Watch<'c> {
    pub(crate) client: &'c Client,
    pub(crate) job_id: Uuid,
    pub(crate) after: Option<u64>,
    pub(crate) on_interrupt: OnInterrupt,
}

impl Watch<'_> {
    /// Shows every event, and what the job waits for, until it ends or the user leaves.
    ///
    /// # Errors
    /// What the client cannot get over, and failures to print; then the job is cancelled too, when Ctrl-C would, as a
    /// program whose reader is gone ends on this machine.
    pub(crate) async fn run(
        &self,
        interrupts: &mut Interrupts,
        mut show: impl FnMut(Seen<'_>) -> io::Result<()>,
    ) -> anyhow::Result<End> {
        let mut follower = Follower::new(self.client, self.job_id, self.after);
        let (mut is_cancelling, mut asking) = (false, Asking::new());
        loop {
            let shown = tokio::select! {
                event = follower.next() => {
                    let Some(event) = event? else { return Ok(End::Job) };
                    asking.heard(&event.kind);
                    show(Seen::Event(&event))
                }
                reason = self.reason(asking.next), if asking.is_waiting => {
                    asking.asked(reason).map_or(Ok(()), |reason| show(Seen::WaitsFor(reason)))
                }
                () = interrupts.next() => {
                    if is_cancelling || self.on_interrupt == OnInterrupt::Leave {
                        return Ok(End::Left);
                    }
                    is_cancelling = true;
                    output::note("cancelling; Ctrl-C again leaves at once");
                    tokio::select! {
                        cancelled = cancel(self.client, self.job_id) => drop(cancelled?),
                        () = interrupts.next() => return Ok(End::Left),
                    }
                    Ok(())
                }
            };
            if let Err(error) = shown {
                self.give_up(is_cancelling).await;
                return Err(error.into());
            }
        }
    }

    /// Why the job is not running, asked at this time; nothing when nobody can say.
    async fn reason(&self, at: Instant) -> Option<String> {
        sleep_until(at).await;
        let job: Value = self.client.get(&["jobs", &self.job_id.to_string()], &[]).await.ok()?;
        Some(output::clean(job.get("waiting_for")?.as_str()?))
    }

    async fn give_up(&self, is_cancelling: bool) {
        if self.on_interrupt == OnInterrupt::Cancel
            && !is_cancelling
            && let Err(error) = cancel(self.client, self.job_id).await
        {
            output::note(format_args!("job {} goes on: {error}", self.job_id));
        }
    }
}

/// Asks the server to cancel a job; answers it as it then is.
pub(crate) async fn cancel(client: &Client, job_id: Uuid) -> Result<Value, crate::client::Error> {
    client
        .post_repeatable(&["jobs", &job_id.to_string(), "cancel"], &json!({}))
        .await
}
