//! Writing down what each call of a model used, while the turn goes on.

use common::clock::Clock;
use common::job::Job;
use common::message::{Message, Usage};
use common::store::Store;
use common::store::usage::Call;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::Context;
use super::super::native::{CallUsage, ToolCall, ToolOutcome, TurnSink};

/// Calls that wait to be written; a turn makes them one after another, so few ever do.
const WAITING_MAX: usize = 1_024;

/// Tries before a call's usage is given up, while Postgres is away.
const TRIES: u32 = 20;

/// The task that writes.
#[derive(Debug)]
pub(in super::super) struct Calls {
    sender: mpsc::Sender<Call>,
    clock: Clock,
    task: JoinSet<()>,
}

impl Calls {
    pub(in super::super) fn begin(context: &Context) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut task = JoinSet::new();
        task.spawn(write(context.machine.store.clone(), context.job.clone(), receiver));
        Self {
            sender,
            clock: context.clock.clone(),
            task,
        }
    }

    /// A sink that hands everything on and writes down what calls used.
    pub(in super::super) fn watching<S: TurnSink>(&self, sink: S) -> Watching<S> {
        Watching {
            sink,
            sender: self.sender.clone(),
            clock: self.clock.clone(),
        }
    }

    /// Waits until everything is written. Sinks must be gone.
    pub(in super::super) async fn end(mut self) {
        drop(self.sender);
        while self.task.join_next().await.is_some() {}
    }
}

async fn write(store: Store, job: Job, mut calls: mpsc::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        for tried in 1..=TRIES {
            match store.insert_usage(&job, &call).await {
                Ok(()) => break,
                Err(error) if tried == TRIES => {
                    tracing::error!(%error, job_id = %job.id, ?call, "usage is lost");
                }
                Err(error) => {
                    tracing::warn!(%error, job_id = %job.id, "usage waits for Postgres");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// See [`Calls::watching`].
#[derive(Debug)]
pub(in super::super) struct Watching<S> {
    sink: S,
    sender: mpsc::Sender<Call>,
    clock: Clock,
}

impl<S: TurnSink> TurnSink for Watching<S> {
    fn text_delta(&self, text: &str) {
        self.sink.text_delta(text);
    }

    fn reasoning_delta(&self, text: &str) {
        self.sink.reasoning_delta(text);
    }

    fn tool_started(&self, call: &ToolCall) {
        self.sink.tool_started(call);
    }

    fn tool_output(&self, tool_call_id: &str, text: &str) {
        self.sink.tool_output(tool_call_id, text);
    }

    fn tool_finished(&self, tool_call_id: &str, outcome: &ToolOutcome) {
        self.sink.tool_finished(tool_call_id, outcome);
    }

    fn usage(&self, call: &CallUsage) {
        let name = call.model.to_string();
        let (provider, model) = name.split_once('/').unwrap_or(("", name.as_str()));
        let fact = Call {
            call: call.call,
            provider: provider.to_owned(),
            model: model.to_owned(),
            usage: Usage { ..call.usage },
            at: self.clock.now(),
        };
        if self.sender.try_send(fact).is_err() {
            tracing::error!(model = name, "usage is lost: too much waits for Postgres");
        }
        self.sink.usage(call);
    }

    fn message(&self, message: &Message) {
        self.sink.message(message);
    }

    fn status(&self, phase: &str, detail: Option<&str>) {
        self.sink.status(phase, detail);
    }
}
