//! The scripted provider: plays rules instead of asking a model, and says so.
//!
//! It is what demos, tests and machines without a key use. Its models are scripts: `scripted/demo` runs the code that a
//! message contains and repeats everything else, `scripted/slow` does the same at the pace of a real model, and JSON
//! files add more (see [`script`]). The same question always gets the same answer, usage included. It is asked in
//! process, or over HTTP on either wire ([`serve()`]); both play the same steps.

mod answer;
pub mod anthropic;
mod demo;
pub mod frame;
pub mod openai;
pub mod perform;
mod read;
mod recording;
pub mod script;
mod serve;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::message::Usage;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Deserialize;

pub use self::answer::{Response, Told};
use self::perform::{Step, perform};
pub use self::read::{Asked, read};
pub use self::recording::Recording;
use self::script::Script;
pub use self::serve::{SENT_US, serve};
use super::error::{Reason, Refusal};
use super::policy::Account;
use super::server::{Call, Reply};
use super::wire::Wire;
use super::{Error, ModelEvent, ModelProvider, ModelRequest, ModelStream};

/// The pause before each piece of `scripted/slow`: about fifty tokens a second.
const SLOW_PAUSE: Duration = Duration::from_millis(20);

/// The script that stands for every model without one of its own.
const ANY: &str = "*";

/// A provider whose models are scripts.
#[derive(Debug)]
pub struct Scripted {
    scripts: BTreeMap<String, Script>,
    account: Account,
    told: Arc<Mutex<Told>>,
}

/// A file with the scripts of several models; [`ANY`] stands for all others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Several {
    models: BTreeMap<String, Script>,
}

impl Scripted {
    /// The scripts that are built in: `demo` and `slow`.
    pub fn built_in() -> Self {
        let demo = Script::demo(Duration::ZERO);
        let slow = Script::demo(SLOW_PAUSE);
        Self {
            scripts: BTreeMap::from([("demo".to_owned(), demo), ("slow".to_owned(), slow)]),
            account: Account {
                name: "scripted".to_owned(),
                calls_max: 0,
                tokens_per_minute: 0,
            },
            told: Arc::default(),
        }
    }

    /// Adds or replaces a script.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, script: Script) -> Self {
        self.scripts.insert(name.into(), script);
        self
    }

    /// Adds every `<name>.json` of a folder.
    ///
    /// # Errors
    /// [`Error::Settings`] that names the file.
    pub fn load(&mut self, folder: &Path) -> Result<(), Error> {
        let entries = std::fs::read_dir(folder).map_err(|error| fault(folder, &error))?;
        for entry in entries {
            let path = entry.map_err(|error| fault(folder, &error))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                self.load_file(&path)?;
            }
        }
        Ok(())
    }

    /// Adds the script of a file under the file's name, or the scripts of `{"models": {NAME: SCRIPT, …}}`. Recordings are
    /// looked for beside the file.
    ///
    /// # Errors
    /// [`Error::Settings`] that names the file.
    pub fn load_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = std::fs::read(path).map_err(|error| fault(path, &error))?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| fault(path, &error))?;
        let mut models = if value.get("models").is_some() {
            let several: Several = serde_json::from_value(value).map_err(|error| fault(path, &error))?;
            several.models
        } else {
            let script = serde_json::from_value(value).map_err(|error| fault(path, &error))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            BTreeMap::from([(name, script)])
        };
        let beside = path.parent().unwrap_or_else(|| Path::new(""));
        for script in models.values_mut() {
            for recording in script
                .rules
                .iter_mut()
                .flatten()
                .filter_map(|rule| rule.recording.as_mut())
            {
                recording.load(beside).map_err(|error| fault(path, &error))?;
            }
        }
        self.scripts.extend(models);
        Ok(())
    }

    /// The names of its models.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.scripts.keys().map(String::as_str)
    }

    /// What it has told its clients that they used, over HTTP and in process.
    pub fn told(&self) -> Told {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the script `model` does with `request`; a refusal when there is no such script.
    pub fn play(&self, model: &str, request: &ModelRequest) -> Vec<Step> {
        let model = model.strip_prefix("scripted/").unwrap_or(model);
        if let Some(script) = self.scripts.get(model).or_else(|| self.scripts.get(ANY)) {
            return match script.recording(request) {
                Some(recording) => recording.steps(script.pause),
                None => perform(&script.reply(request), request, script),
            };
        }
        let known: Vec<&str> = self.names().collect();
        vec![Step::Refuse(Refusal {
            reason: Reason::NotFound,
            status: Some(404),
            kind: "not_found_error".to_owned(),
            message: format!("there is no script {model:?}; there are: {}", known.join(", ")),
            request_id: None,
            retry_after: None,
            should_retry: None,
        })]
    }
}

fn fault(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Settings {
        provider: "scripted".to_owned(),
        reason: format!("{}: {reason}", path.display()),
    }
}

fn count(told: &Mutex<Told>, usage: Usage) {
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    told.calls += 1;
    told.usage += usage;
}

impl ModelProvider for Scripted {
    fn stream<'a>(&'a self, model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>> {
        let steps = VecDeque::from(self.play(model, request));
        let told = Arc::clone(&self.told);
        async move {
            if let Some(Step::Refuse(refusal)) = steps.front() {
                return Err(Error::Refused(Box::new(refusal.clone())));
            }
            let start = Performance {
                steps,
                usage: Usage::default(),
                told,
            };
            Ok(stream::unfold(start, next).boxed())
        }
        .boxed()
    }

    fn forward(&self, call: Call) -> BoxFuture<'_, Result<Reply, Error>> {
        let response = self.answer(call.route, &call.body);
        let told = Arc::clone(&self.told);
        async move {
            if let Some(refusal) = response.refusal {
                return Err(Error::Refused(Box::new(refusal)));
            }
            let header = |name: &str| {
                let found = response.headers.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.clone())
            };
            Ok(Reply {
                status: response.status,
                content_type: header("content-type").unwrap_or_default(),
                request_id: header("request-id").or_else(|| header("x-request-id")),
                body: serve::body(response.frames, told)
                    .map(|chunk| chunk.map_err(|_cut| Error::Cut(None)))
                    .boxed(),
            })
        }
        .boxed()
    }

    fn account(&self) -> &Account {
        &self.account
    }

    fn wire(&self) -> Option<Wire> {
        None
    }
}

/// An answer in process.
struct Performance {
    steps: VecDeque<Step>,
    usage: Usage,
    told: Arc<Mutex<Told>>,
}

async fn next(mut play: Performance) -> Option<(Result<ModelEvent, Error>, Performance)> {
    loop {
        let error = match play.steps.pop_front()? {
            Step::Event(event) => {
                match &event {
                    ModelEvent::Usage(usage) => play.usage.merge_snapshot(usage),
                    ModelEvent::End { .. } => count(&play.told, play.usage),
                    _ => {}
                }
                return Some((Ok(event), play));
            }
            Step::Wait(pause) => {
                tokio::time::sleep(pause).await;
                continue;
            }
            Step::Stall => std::future::pending().await,
            Step::Refuse(refusal) => Error::Refused(Box::new(refusal)),
            Step::Cut => Error::Cut(None),
        };
        play.steps.clear();
        return Some((Err(error), play));
    }
}

#[cfg(test)]
mod tests;
