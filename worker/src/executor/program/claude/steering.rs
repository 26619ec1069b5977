//! What is said to a turn while it is under way.
//!
//! It is looked for in Postgres, handed to the program with the message's id, and heard when the program says that it has
//! begun with it: between two calls of the model, or after its answer, which then is not the end.

use common::message::Message;

use super::super::super::Context;

/// Messages to one turn.
pub(super) struct Steering<'c> {
    context: &'c Context,
    /// Handed to the program, which has not begun with them.
    handed: Vec<Message>,
    /// How often something was taken: it orders what was said.
    taken: u32,
}

impl<'c> Steering<'c> {
    pub(super) fn new(context: &'c Context) -> Self {
        Self {
            context,
            handed: Vec::new(),
            taken: 0,
        }
    }

    /// What attempts before this one were told, in order.
    pub(super) async fn heard_before(&mut self) -> Vec<Message> {
        let job = &self.context.job;
        if job.attempt < 2 {
            return Vec::new();
        }
        match self.context.machine.store.heard_messages(job.id).await {
            Ok(heard) => {
                self.taken = heard.iter().map(|heard| heard.step + 1).max().unwrap_or(0);
                heard.into_iter().map(|heard| heard.message).collect()
            }
            Err(error) => {
                tracing::warn!(%error, job_id = %job.id, "what was said to an attempt before cannot be read");
                Vec::new()
            }
        }
    }

    /// What was said since the last look, to be handed on. While Postgres is away nobody says anything either.
    pub(super) async fn listen(&mut self) -> Vec<Message> {
        let job = &self.context.job;
        let fence = (job.attempt, self.context.worker_id);
        let taken = self
            .context
            .machine
            .store
            .take_messages(job.id, fence, self.taken)
            .await;
        match taken {
            Ok(messages) => {
                self.taken += u32::from(!messages.is_empty());
                self.handed.extend(messages.iter().cloned());
                messages
            }
            Err(error) => {
                tracing::debug!(%error, job_id = %job.id, "what is said to a turn cannot be read");
                Vec::new()
            }
        }
    }

    /// The program has begun with a message: which, when it is one of these.
    pub(super) fn begun(&mut self, id: &str) -> Option<Message> {
        let at = self.handed.iter().position(|message| message.id.to_string() == id)?;
        Some(self.handed.remove(at))
    }

    /// Whether the program has something before it still.
    pub(super) fn is_waiting(&self) -> bool {
        !self.handed.is_empty()
    }
}
