//! One call of the model, streamed on as it comes.

use common::message::Usage;
use common::store::usage::Call;
use futures_util::StreamExt;

use super::{CallUsage, Run, Tools};
use crate::model::answer::Finished;
use crate::model::{Answer, Error, ModelEvent, ModelRequest, Setback, StopReason, open};

/// A call that did not come to its end.
pub(super) struct Broken {
    /// What came before, and what it used; none when nothing came.
    pub(super) partial: Option<(Finished, Usage)>,
    /// Why it ended.
    pub(super) error: Error,
}

impl Run<'_> {
    /// Asks the model. Its usage is reported and added up whatever comes of it, and is answered as it is written down.
    pub(super) async fn ask(&mut self, request: &ModelRequest, tools: &dyn Tools) -> Result<(Finished, Call), Broken> {
        let (sink, cancel) = (self.context.sink, self.context.cancel);
        let total = &mut self.usage;
        let mut on_setback = |setback: &Setback<'_>| {
            sink.status("model", Some(&setback.to_string()));
            if let Some(fact) = &setback.spent {
                sink.usage(&CallUsage::new(setback.model, fact));
                *total += fact.usage;
            }
        };
        let opened = open(self.context.caller, &self.turn.models, request, &mut on_setback, cancel).await;
        let mut opened = opened.map_err(|error| Broken { partial: None, error })?;
        let is_cut_short = opened.call.output_tokens_max() < request.max_output_tokens;

        let mut answer = Answer::new(opened.model.provider()).asked_with(request.bytes());
        let error = loop {
            match cancel.run_until_cancelled(opened.stream.next()).await {
                None => break Some(Error::Cancelled),
                Some(None) => break None,
                Some(Some(Err(error))) => break Some(error),
                Some(Some(Ok(event))) => {
                    match &event {
                        ModelEvent::TextDelta { text } => sink.text_delta(text),
                        ModelEvent::ReasoningDelta { text } => sink.reasoning_delta(text),
                        ModelEvent::ToolCallStart { name, .. } => tools.prepare(name),
                        _ => {}
                    }
                    answer.push(event);
                }
            }
        };
        let finished = answer.finish();
        let spent = finished.usage;
        let error = error.or_else(|| finished.stop_reason.is_none().then_some(Error::Cut(None)));
        let fact = opened.call.end(error.as_ref(), spent);
        sink.usage(&CallUsage::new(&opened.model, &fact));
        self.usage += spent;
        let error = error.or_else(|| {
            let is_full = is_cut_short && finished.stop_reason == Some(StopReason::MaxTokens);
            is_full.then(|| Error::Budget {
                left: "the answer has all the tokens that were left".to_owned(),
            })
        });
        match error {
            None => Ok((finished, fact)),
            Some(error) => Err(Broken {
                partial: Some((finished, spent)),
                error,
            }),
        }
    }
}
