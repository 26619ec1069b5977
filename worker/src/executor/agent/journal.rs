//! The journal of a turn in Postgres, and what a later attempt makes of it.

use std::time::Duration;

use common::clock::Clock;
use common::ids::{ApprovalId, WorkerId};
use common::job::Job;
use common::job::approval::ApprovalState;
use common::job::event::EventBody;
use common::message::Message;
use common::store::approvals::Approval;
use common::store::journal::{JournalKey, JournalRow, Unfinished};
use common::store::{self, Class, Store};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::Context;
use super::super::native::journal::{CallKey, Journal, JournalLost, Record};
use super::super::native::resume::{Brought, FinishedStep, Resume, Row, Verdict, chain};
use crate::events::{Say, Sink};

/// First and longest pause before a call is written down again, while Postgres is away.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The journal of one attempt.
#[derive(Debug)]
pub(super) struct Kept {
    store: Store,
    job: Job,
    worker_id: WorkerId,
    clock: Clock,
    events: Sink,
}

impl Kept {
    pub(super) fn new(context: &Context) -> Self {
        Self {
            store: context.machine.store.clone(),
            job: context.job.clone(),
            worker_id: context.worker_id,
            clock: context.clock.clone(),
            events: context.events.clone(),
        }
    }

    /// What earlier attempts have done. Says what of it must be done again. `has_files` says whether an attempt that ends
    /// in order leaves its files to the next.
    ///
    /// # Errors
    /// When Postgres is away.
    pub(super) async fn resume(&self, has_files: bool) -> Result<Resume, store::Error> {
        let (id, attempt) = (self.job.id, self.job.attempt);
        if attempt == 1 {
            return Ok(Resume::default());
        }
        let said_until = self.store.last_waiting_attempt(id).await?;
        let rows = self.store.journal(id).await?;
        let rows: Vec<Row> = rows.iter().filter_map(row).collect();
        self.meter(&rows).await?;
        let steps = chain(rows, said_until);
        let heard = self.store.heard_messages(id).await?.into_iter();
        let fence = (attempt, self.worker_id);
        let (approvals, closed) = self.store.close_approvals(id, fence, self.clock.now()).await?;
        self.say_expired(&approvals, &closed);
        let parents: Vec<u32> = steps.iter().map(|step| step.attempt).collect();
        let verdicts = approvals.iter().filter_map(|approval| {
            let (step, place, parent) = approval.call;
            let is_of_chain = parents.get(usize::try_from(step).ok()?) == Some(&parent);
            is_of_chain.then(|| ((step, place), verdict(approval)))
        });
        let resume = Resume {
            verdicts: verdicts.collect(),
            heard: heard
                .map(|heard| (heard.step, heard.message, heard.attempt <= said_until))
                .collect(),
            notice: self.notice(&steps, has_files).await?,
            steps,
        };
        self.report(&resume).await?;
        Ok(resume)
    }

    /// Writes down what answers used whose worker died between their commit and that of their usage.
    async fn meter(&self, rows: &[Row]) -> Result<(), store::Error> {
        let metered = self.store.metered_calls(self.job.id).await?;
        for row in rows {
            if let Brought::Answer(answer) = &row.brought
                && let Some(used) = &answer.used
                && !metered.contains(&(row.attempt, used.call))
            {
                let job = Job {
                    attempt: row.attempt,
                    ..self.job.clone()
                };
                self.store.insert_usage(&job, used).await?;
            }
        }
        Ok(())
    }

    /// What the model must know when tools ran before: of the last attempt that ran some.
    async fn notice(&self, steps: &[FinishedStep], has_files: bool) -> Result<Option<String>, store::Error> {
        let Some(last) = steps.iter().flat_map(|step| &step.ran_by).max() else {
            return Ok(None);
        };
        let ended = self.store.attempts(self.job.id).await?;
        let is_lost = ended
            .iter()
            .any(|ended| ended.attempt == *last && ended.outcome == "lost");
        let done = finished(steps);
        let gone = if has_files && !is_lost {
            "processes and Python variables of those are gone, files are as they were"
        } else {
            "processes and Python variables of those are gone, and what they wrote to files may be: look before you rely \
             on it"
        };
        Ok(Some(format!(
            "This turn was interrupted after {done} of its steps and went on in a new sandbox: {gone}."
        )))
    }

    async fn report(&self, resume: &Resume) -> Result<(), store::Error> {
        let attempt = self.job.attempt;
        let lost = self.store.unfinished_calls(self.job.id, attempt - 1, attempt).await?;
        for (kind, count) in [("model", lost.model), ("tool", lost.tool)] {
            metrics::counter!("hothouse_calls_repeated_total", "kind" => kind).increment(count);
        }
        if resume.steps.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let Unfinished { model, tool } = lost;
        let detail = format!(
            "goes on after {} finished steps; {model} model and {tool} tool calls without a result are made again",
            finished(&resume.steps)
        );
        self.events.say(EventBody::Status {
            phase: "resumed".to_owned(),
            detail: Some(detail),
        });
        Ok(())
    }

    /// Those that this attempt has closed; a person's answer is in the log already.
    fn say_expired(&self, approvals: &[Approval], closed: &[ApprovalId]) {
        for approval in approvals.iter().filter(|approval| closed.contains(&approval.id)) {
            self.events.say(EventBody::ApprovalAnswered {
                approval_id: approval.id,
                tool_call_id: approval.tool_call_id.clone(),
                state: approval.state,
                comment: None,
            });
        }
    }

    fn key(&self, call: CallKey) -> JournalKey {
        JournalKey {
            job_id: self.job.id,
            attempt: self.job.attempt,
            step: call.step,
            place: call.place,
            parent: call.parent,
        }
    }

    async fn write(&self, row: JournalRow) -> Result<(), JournalLost> {
        let mut pause = PAUSE.0;
        loop {
            match self.store.finish_call(&row, self.clock.now()).await {
                Ok(()) => return Ok(()),
                Err(error) if error.class() == Class::Transient => {
                    tracing::warn!(%error, job_id = %self.job.id, "the journal waits for Postgres");
                }
                Err(error) => return Err(JournalLost(Box::new(error))),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

impl Journal for Kept {
    fn attempt(&self) -> u32 {
        self.job.attempt
    }

    fn begin(&self, call: CallKey) -> BoxFuture<'_, ()> {
        async move {
            if let Err(error) = self.store.begin_call(&self.key(call), self.clock.now()).await {
                tracing::debug!(%error, job_id = %self.job.id, "the beginning of a call is not written");
            }
        }
        .boxed()
    }

    fn fail(&self, call: CallKey) -> BoxFuture<'_, ()> {
        async move {
            if let Err(error) = self.store.forget_call(&self.key(call)).await {
                tracing::debug!(%error, job_id = %self.job.id, "that a call has failed is not written");
            }
        }
        .boxed()
    }

    fn finish<'a>(&'a self, call: CallKey, record: Record<'a>) -> BoxFuture<'a, Result<(), JournalLost>> {
        async move {
            let data = match record {
                Record::Answer(answer) => serde_json::to_string(answer),
                Record::Outcome(outcome) => serde_json::to_string(outcome),
            };
            let data = data.map_err(|error| JournalLost(Box::new(error)))?;
            let key = self.key(call);
            self.write(JournalRow { key, data }).await
        }
        .boxed()
    }

    fn take_messages(&self, step: u32) -> BoxFuture<'_, Result<Vec<Message>, JournalLost>> {
        async move {
            let fence = (self.job.attempt, self.worker_id);
            let mut pause = PAUSE.0;
            loop {
                match self.store.take_messages(self.job.id, fence, step).await {
                    Ok(messages) => return Ok(messages),
                    Err(error) if error.class() == Class::Transient => {}
                    Err(error) => return Err(JournalLost(Box::new(error))),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        .boxed()
    }
}

/// How many steps lack nothing.
fn finished(steps: &[FinishedStep]) -> usize {
    let is_whole = |step: &&FinishedStep| step.results.len() == step.answer.message.tool_calls().count();
    steps.iter().filter(is_whole).count()
}

/// A row as the turn reads it; nothing when another version wrote it.
fn row(row: &JournalRow) -> Option<Row> {
    let JournalKey {
        attempt,
        step,
        place,
        parent,
        ..
    } = row.key;
    let brought = match place {
        None => serde_json::from_str(&row.data).map(|answer| Brought::Answer(Box::new(answer))),
        Some(_) => serde_json::from_str(&row.data).map(Brought::Outcome),
    };
    let brought = brought
        .inspect_err(|error| tracing::warn!(%error, job_id = %row.key.job_id, "a row of the journal cannot be read"))
        .ok()?;
    Some(Row {
        attempt,
        key: CallKey { step, place, parent },
        brought,
    })
}

fn verdict(approval: &Approval) -> Verdict {
    match approval.state {
        ApprovalState::Open | ApprovalState::Withdrawn => Verdict::Open {
            deadline: approval.deadline,
        },
        ApprovalState::Approved => Verdict::Approved,
        ApprovalState::Denied => Verdict::Denied {
            comment: approval.comment.clone(),
        },
        ApprovalState::Expired => Verdict::Expired,
    }
}

#[cfg(test)]
mod tests;
