//! Watching a job to its end: what `run`, `logs -f` and `chat` have in common.

use std::io;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Client, Event, Follower};
use crate::interrupt::Interrupts;
use crate::output;

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

/// Watches one job.
#[derive(Debug)]
pub(crate) struct Watch<'c> {
    pub(crate) client: &'c Client,
    pub(crate) job_id: Uuid,
    pub(crate) after: Option<u64>,
    pub(crate) on_interrupt: OnInterrupt,
}

impl Watch<'_> {
    /// Shows every event until the job ends or the user leaves.
    ///
    /// # Errors
    /// What the client cannot get over, and failures to print; then the job is cancelled too, when Ctrl-C would, as a
    /// program whose reader is gone ends on this machine.
    pub(crate) async fn run(
        &self,
        interrupts: &mut Interrupts,
        mut show: impl FnMut(&Event) -> io::Result<()>,
    ) -> anyhow::Result<End> {
        let mut follower = Follower::new(self.client, self.job_id, self.after);
        let mut is_cancelling = false;
        loop {
            tokio::select! {
                event = follower.next() => {
                    let Some(event) = event? else { return Ok(End::Job) };
                    if let Err(error) = show(&event) {
                        self.give_up(is_cancelling).await;
                        return Err(error.into());
                    }
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
                }
            }
        }
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
