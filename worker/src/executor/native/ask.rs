//! One call of the model, streamed on as it comes.

use common::message::Usage;
use futures_util::StreamExt;

use super::{CallUsage, Run, Tools};
use crate::model::answer::Finished;
use crate::model::{Answer, Error, ModelEvent, ModelRequest, Next, Setback, open};

/// A call that did not come to its end.
pub(super) struct Broken {
    /// What came before, and what it used; none when nothing came.
    pub(super) partial: Option<(Finished, Usage)>,
    /// Why it ended.
    pub(super) error: Error,
}

impl Run<'_> {
    /// Asks the model. Its usage is reported and added up whatever comes of it.
    pub(super) async fn ask(&mut self, request: &ModelRequest, tools: &dyn Tools) -> Result<(Finished, Usage), Broken> {
        let (sink, cancel) = (self.context.sink, self.context.cancel);
        let (calls, usage) = (&mut self.calls, &mut self.usage);
        let mut on_setback = |setback: &Setback<'_>| {
            sink.status("model", Some(&explain(setback)));
            // A call that failed before it reported anything has no number of its own: nothing is known of it.
            if let Some(spent) = setback.usage {
                sink.usage(&CallUsage {
                    call: *calls,
                    model: setback.model.clone(),
                    usage: spent,
                });
                *calls += 1;
                *usage += spent;
            }
        };
        let (providers, retry) = (self.context.providers, self.context.retry);
        let opened = open(providers, &self.turn.models, request, retry, &mut on_setback, cancel).await;
        let mut opened = opened.map_err(|error| Broken { partial: None, error })?;

        let mut answer = Answer::new(opened.model.provider());
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
        sink.usage(&CallUsage {
            call: self.calls,
            model: opened.model,
            usage: spent,
        });
        self.calls += 1;
        self.usage += spent;
        match error {
            None if finished.stop_reason.is_some() => Ok((finished, spent)),
            None => Err(Broken {
                partial: Some((finished, spent)),
                error: Error::Cut(None),
            }),
            Some(error) => Err(Broken {
                partial: Some((finished, spent)),
                error,
            }),
        }
    }
}

/// A setback in words for the one who follows the turn.
fn explain(setback: &Setback<'_>) -> String {
    let next = match setback.next {
        Next::Retry { pause } => format!("trying again in {} ms", pause.as_millis()),
        Next::FallBack { to } => format!("asking {to} instead"),
        Next::GiveUp => "giving up".to_owned(),
    };
    format!("{}: {}; {next}", setback.model, setback.error.failure().message)
}
