//! The tool calls of one answer: those that need permission are asked for first, then all run at once.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::journal::{CallKey, Record};
use super::resume::Verdict;
use super::step::Run;
use super::tool::Asked;
use super::{Context, Question, Stop, ToolOutcome, Tools, cut, tool};

/// One call, ready.
struct Ready<'a> {
    asked: &'a Asked,
    key: CallKey,
    plan: Plan,
}

/// What becomes of a call.
enum Plan {
    /// An attempt before has run it.
    Known(ToolOutcome),
    /// It is not run, and this is why.
    Refuse(String),
    /// It is run.
    Run,
}

/// What came of a call.
struct Done {
    outcome: ToolOutcome,
    lost: Option<Stop>,
}

impl Run<'_> {
    /// What the calls brought, in their order. With a `refusal`, none is run that was not before. The second value says
    /// why the turn cannot go on.
    ///
    /// # Errors
    /// [`Stop::Asks`] when a call needs permission: then none of the answer's calls was begun.
    pub(super) async fn call_all(
        &self,
        calls: &[Asked],
        mut known: BTreeMap<u32, ToolOutcome>,
        is_said: bool,
        refusal: Option<String>,
        tools: &dyn Tools,
    ) -> Result<(Vec<ToolOutcome>, Option<Stop>), Stop> {
        let offered = tools.definitions();
        let mut questions = Vec::new();
        let mut ready = Vec::with_capacity(calls.len());
        for (place, asked) in (0..).zip(calls) {
            let names = offered.iter().map(|tool| tool.name.as_str());
            let fault = asked.fault.clone().or_else(|| tool::unknown(&asked.call.name, names));
            let plan = match (known.remove(&place), refusal.clone().or(fault)) {
                (Some(outcome), _) => Plan::Known(outcome),
                (None, Some(refusal)) => Plan::Refuse(refusal),
                (None, None) => self.permission(place, asked, &mut questions),
            };
            let key = CallKey {
                step: self.steps,
                place: Some(place),
                parent: self.parent,
            };
            ready.push(Ready { asked, key, plan });
        }
        if !questions.is_empty() {
            return Err(Stop::Asks(questions));
        }
        let at_once = Semaphore::new(self.turn.limits.parallel_tools_max.max(1));
        let bytes_max = self.turn.limits.tool_output_bytes_max;
        let context = self.context;
        let runs = ready.into_iter().map(|ready| {
            let at_once = &at_once;
            async move {
                let _permit = at_once.acquire().await;
                call(ready, context, is_said, bytes_max, tools).await
            }
        });
        let mut lost = None;
        let mut outcomes = Vec::with_capacity(calls.len());
        for done in join_all(runs).await {
            outcomes.push(done.outcome);
            lost = lost.or(done.lost);
        }
        Ok((outcomes, lost))
    }

    fn permission(&self, place: u32, asked: &Asked, questions: &mut Vec<Question>) -> Plan {
        let Some(patience) = self.turn.asks.get(&asked.call.name) else {
            return Plan::Run;
        };
        let verdict = self.turn.resume.verdicts.get(&(self.steps, place));
        match verdict {
            Some(Verdict::Approved) => return Plan::Run,
            Some(Verdict::Expired) => {
                return Plan::Refuse(
                    "Not run: it needs a person's permission, and nobody answered in time.".to_owned(),
                );
            }
            Some(Verdict::Denied { comment }) => {
                let comment = comment.as_deref().filter(|comment| !comment.trim().is_empty());
                let said = comment
                    .map(|comment| format!(" They said: {comment}"))
                    .unwrap_or_default();
                return Plan::Refuse(format!("Not run: a person did not allow it.{said}"));
            }
            Some(Verdict::Open { .. }) | None => {}
        }
        let asked_until = match verdict {
            Some(Verdict::Open { deadline }) => Some(*deadline),
            _ => None,
        };
        questions.push(Question {
            step: self.steps,
            place,
            parent: self.parent.unwrap_or_else(|| self.context.journal.attempt()),
            call: asked.call.clone(),
            patience: *patience,
            asked_until,
        });
        Plan::Run
    }
}

/// Runs one call, commits what it brought, and says so.
async fn call(ready: Ready<'_>, context: Context<'_>, is_said: bool, bytes_max: usize, tools: &dyn Tools) -> Done {
    let Ready { asked, key, plan } = ready;
    if !is_said {
        context.sink.tool_started(&asked.call);
    }
    let (outcome, lost) = match plan {
        Plan::Known(outcome) => (outcome, None),
        Plan::Refuse(refusal) => (ToolOutcome::error(refusal), None),
        Plan::Run if context.cancel.is_cancelled() => (ToolOutcome::error("Not run: the turn was cancelled."), None),
        Plan::Run => run(asked, key, context, bytes_max, tools).await,
    };
    if !is_said {
        context.sink.tool_finished(&asked.call.id, &outcome);
    }
    Done { outcome, lost }
}

async fn run(
    asked: &Asked,
    key: CallKey,
    context: Context<'_>,
    bytes_max: usize,
    tools: &dyn Tools,
) -> (ToolOutcome, Option<Stop>) {
    let (journal, cancel) = (context.journal, context.cancel);
    let work = async { tokio::join!(tools.call(&asked.call, context.sink), journal.begin(key)).0 };
    let ToolOutcome { output, is_error } = match cancel.run_until_cancelled(work).await {
        Some(Ok(outcome)) => outcome,
        Some(Err(lost)) => {
            let outcome = ToolOutcome::error("No result: the sandbox was lost while this call ran.");
            return (outcome, Some(Stop::Tools(lost)));
        }
        None => {
            let outcome = ToolOutcome::error("No result: the turn was cancelled while this call ran.");
            return (outcome, None);
        }
    };
    let outcome = ToolOutcome {
        output: cut(&output, bytes_max),
        is_error,
    };
    let written = cancel
        .run_until_cancelled(journal.finish(key, Record::Outcome(&outcome)))
        .await;
    let lost = written.and_then(Result::err).map(Stop::Journal);
    (outcome, lost)
}
