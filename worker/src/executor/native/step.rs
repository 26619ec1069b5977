//! One step of a turn: one call of the model, and the tools that it calls.

use std::collections::BTreeMap;
use std::collections::vec_deque::VecDeque;

use common::ids::MessageId;
use common::message::{Message, Part, Role, Usage, repair};
use uuid::Uuid;

use super::ask;
use super::journal::{Answered, CallKey, Record};
use super::resume::FinishedStep;
use super::{Context, Stop, ToolOutcome, Tools, Turn, tool};
use crate::model::answer::Finished;
use crate::model::{Error, ModelRequest, StopReason};

/// A turn under way.
pub(super) struct Run<'a> {
    pub(super) turn: Turn,
    pub(super) context: Context<'a>,
    pub(super) messages: Vec<Message>,
    pub(super) usage: Usage,
    pub(super) steps: u32,
    /// The attempt that got the last answer.
    pub(super) parent: Option<u32>,
    finished: VecDeque<FinishedStep>,
    /// Messages taken at the end of the step before.
    ahead: Vec<(Message, bool)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(mut turn: Turn, context: Context<'a>) -> Self {
        let finished = VecDeque::from(std::mem::take(&mut turn.resume.steps));
        Self {
            turn,
            context,
            messages: Vec::new(),
            usage: Usage::default(),
            steps: 0,
            parent: None,
            finished,
            ahead: Vec::new(),
        }
    }

    /// Asks once and runs what is called, as far as no attempt has done that before.
    pub(super) async fn step(&mut self, tools: &dyn Tools) -> Result<(), Stop> {
        for (message, is_said) in self.heard(self.steps).await? {
            self.add(message, is_said);
        }
        let known = self.finished.pop_front();
        let (answer, results, is_said, is_done_said) = match known {
            Some(known) => {
                self.parent = Some(known.attempt);
                (known.answer, known.results, known.is_said, known.is_done_said)
            }
            None => (self.answer(tools).await?, BTreeMap::new(), false, false),
        };
        let Answered {
            message,
            faults,
            stop_reason,
            used: _,
        } = answer;
        let calls = tool::calls(&message.parts, &faults);
        let results_id = MessageId(Uuid::from_u128(message.id.uuid().as_u128() ^ 1));
        self.add(message, is_said);
        let is_last = self.steps + 1 >= self.turn.limits.max_steps;
        if calls.is_empty() {
            self.steps += 1;
            // What was said to the model while it answered is heard before the turn ends.
            self.ahead = if is_last {
                Vec::new()
            } else {
                self.heard(self.steps).await?
            };
            return if self.ahead.is_empty() {
                Err(Stop::Answered(stop_reason))
            } else {
                Ok(())
            };
        }
        let refusal =
            is_last.then(|| format!("Not run: the limit of {} steps is reached.", self.turn.limits.max_steps));
        let (outcomes, lost) = self.call_all(&calls, results, is_done_said, refusal, tools).await?;
        self.say_results(results_id, &calls, outcomes, is_done_said);
        match lost {
            Some(stop) => Err(stop),
            None if self.context.cancel.is_cancelled() => Err(Stop::Cancelled),
            None => {
                self.steps += 1;
                if is_last { Err(Stop::MaxSteps) } else { Ok(()) }
            }
        }
    }

    /// What is said to the running turn, to be heard at `step`: with whether those who follow have seen it.
    async fn heard(&mut self, step: u32) -> Result<Vec<(Message, bool)>, Stop> {
        let ahead = std::mem::take(&mut self.ahead);
        if !ahead.is_empty() {
            return Ok(ahead);
        }
        let before = self.turn.resume.heard.iter().filter(|(at, ..)| *at == step);
        let mut heard: Vec<(Message, bool)> = before
            .map(|(_, message, is_said)| (message.clone(), *is_said))
            .collect();
        if self.finished.is_empty() {
            let cancel = self.context.cancel;
            let new = cancel
                .run_until_cancelled(self.context.journal.take_messages(step))
                .await;
            let new = new.ok_or(Stop::Cancelled)?.map_err(Stop::Journal)?;
            heard.extend(new.into_iter().map(|message| (message, false)));
        }
        Ok(heard)
    }

    /// A new answer of the model, committed.
    async fn answer(&mut self, tools: &dyn Tools) -> Result<Answered, Stop> {
        let request = self.request(tools).map_err(Stop::Model)?;
        let key = CallKey {
            step: self.steps,
            place: None,
            parent: self.parent,
        };
        let (journal, cancel) = (self.context.journal, self.context.cancel);
        let (asked, ()) = tokio::join!(self.ask(&request, tools), journal.begin(key));
        let (finished, used) = match asked {
            Ok(answered) => answered,
            Err(ask::Broken {
                partial,
                error: Error::Cancelled,
            }) => {
                self.keep_partial(partial, "cancelled");
                return Err(Stop::Cancelled);
            }
            Err(ask::Broken { partial, error }) => {
                // What an attempt said that ends by waiting stands beside what the next says.
                if error.wait().is_none() {
                    self.keep_partial(partial, "broken off");
                }
                // A turn that is cancelled now is taken over by nobody.
                let _in_vain = cancel.run_until_cancelled(journal.fail(key)).await;
                return Err(Stop::Model(error));
            }
        };
        let answer = Answered {
            message: self.message(Role::Assistant, finished.parts, Some(used.usage)),
            faults: finished.faults,
            stop_reason: finished.stop_reason.unwrap_or(StopReason::EndTurn),
            used: Some(used),
        };
        if let Some(what) = self.unusual(&answer.stop_reason) {
            self.context.sink.status("model", Some(&what));
        }
        // A turn that is cancelled keeps the answer without it: nobody takes that turn over.
        let written = cancel.run_until_cancelled(journal.finish(key, Record::Answer(&answer)));
        written.await.transpose().map_err(Stop::Journal)?;
        self.parent = Some(journal.attempt());
        Ok(answer)
    }

    /// What a person should know of an answer that did not end by itself.
    fn unusual(&self, reason: &StopReason) -> Option<String> {
        match reason {
            StopReason::MaxTokens => Some(format!(
                "the answer is cut: it has {} tokens, the most that it may have",
                self.turn.limits.max_output_tokens
            )),
            StopReason::Refusal => Some("the model declined to answer".to_owned()),
            StopReason::ContextWindowExceeded => {
                Some("the answer is cut: the conversation no longer fits into the model".to_owned())
            }
            _ => None,
        }
    }

    /// The instructions, and what the model must know about an interruption. Not a message: nobody said it, and it is about
    /// this attempt alone.
    fn system(&self) -> String {
        let parts = [Some(self.turn.system.as_str()), self.turn.resume.notice.as_deref()];
        let parts: Vec<&str> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        parts.join("\n\n")
    }

    fn request(&self, tools: &dyn Tools) -> Result<ModelRequest, Error> {
        let history = self.turn.history.iter().chain(&self.messages).cloned().collect();
        let messages = repair(history);
        if messages.last().is_none_or(|message| message.role != Role::User) {
            return Err(Error::NothingToAnswer);
        }
        Ok(ModelRequest {
            system: self.system(),
            messages,
            tools: tools.definitions(),
            max_output_tokens: self.turn.limits.max_output_tokens,
            temperature: self.turn.temperature,
            stop_sequences: Vec::new(),
            attachments: self.turn.attachments.clone(),
        })
    }

    /// Keeps what a person has seen of an answer that did not come to its end, and what ended it. Its calls were not run, so
    /// they are not in it.
    fn keep_partial(&mut self, partial: Option<(Finished, Usage)>, note: &str) {
        let Some((mut finished, usage)) = partial else { return };
        finished.parts.retain(|part| !matches!(part, Part::ToolCall { .. }));
        if finished
            .parts
            .iter()
            .any(|part| part.as_text().is_some_and(|text| !text.trim().is_empty()))
        {
            finished.parts.push(Part::Status { text: note.to_owned() });
            let message = self.message(Role::Assistant, finished.parts, Some(usage));
            self.add(message, false);
        }
    }

    /// The message of results has an id that follows from the answer's, so that whoever says it again says the same.
    fn say_results(&mut self, id: MessageId, calls: &[tool::Asked], outcomes: Vec<ToolOutcome>, is_said: bool) {
        let result = |(asked, outcome): (&tool::Asked, ToolOutcome)| Part::ToolResult {
            tool_call_id: asked.call.id.clone(),
            is_error: outcome.is_error,
            output: outcome.output,
        };
        let parts = calls.iter().zip(outcomes).map(result).collect();
        let message = Message {
            id,
            ..self.message(Role::User, parts, None)
        };
        self.add(message, is_said);
    }

    fn message(&self, role: Role, mut parts: Vec<Part>, usage: Option<Usage>) -> Message {
        parts.retain(|part| part.as_text().is_none_or(|text| !text.trim().is_empty()));
        Message {
            job_id: self.turn.job_id,
            usage,
            ..Message::new(role, parts, self.context.clock.now())
        }
    }

    fn add(&mut self, message: Message, is_said: bool) {
        if message.parts.is_empty() {
            return;
        }
        if !is_said {
            self.context.sink.message(&message);
        }
        self.messages.push(message);
    }
}
