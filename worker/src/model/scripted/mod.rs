//! The scripted provider: plays rules instead of asking a model, and says so.
//!
//! It is what demos, tests and machines without a key use. Its models are scripts: `scripted/demo` runs the code that a
//! message contains and repeats everything else, `scripted/slow` does the same at the pace of a real model, and a
//! folder of JSON files adds more (see [`script`]). The same question always gets the same answer, usage included.

mod demo;
pub mod perform;
pub mod script;
pub mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

use self::perform::{Step, perform};
use self::script::Script;
use super::error::{Reason, Refusal};
use super::{Error, ModelProvider, ModelRequest, ModelStream};

/// The pause before each piece of `scripted/slow`: about fifty tokens a second.
const SLOW_PAUSE: Duration = Duration::from_millis(20);

/// A provider whose models are scripts.
#[derive(Debug)]
pub struct Scripted {
    scripts: BTreeMap<String, Script>,
}

impl Scripted {
    /// The scripts that are built in: `demo` and `slow`.
    pub fn built_in() -> Self {
        let demo = Script::demo(Duration::ZERO);
        let slow = Script::demo(SLOW_PAUSE);
        Self {
            scripts: BTreeMap::from([("demo".to_owned(), demo), ("slow".to_owned(), slow)]),
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
        let fault = |path: &Path, reason: &dyn std::fmt::Display| Error::Settings {
            provider: "scripted",
            reason: format!("{}: {reason}", path.display()),
        };
        let entries = std::fs::read_dir(folder).map_err(|error| fault(folder, &error))?;
        for entry in entries {
            let path = entry.map_err(|error| fault(folder, &error))?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str());
            let (Some(name), Some("json")) = (name, path.extension().and_then(|ext| ext.to_str())) else {
                continue;
            };
            let text = std::fs::read(&path).map_err(|error| fault(&path, &error))?;
            let script = serde_json::from_slice(&text).map_err(|error| fault(&path, &error))?;
            self.scripts.insert(name.to_owned(), script);
        }
        Ok(())
    }

    /// What the script `model` does with `request`; a refusal when there is no such script.
    pub fn play(&self, model: &str, request: &ModelRequest) -> Vec<Step> {
        if let Some(script) = self.scripts.get(model) {
            return perform(&script.reply(request), request, script);
        }
        let known: Vec<&str> = self.scripts.keys().map(String::as_str).collect();
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

impl ModelProvider for Scripted {
    fn stream<'a>(&'a self, model: &'a str, request: &'a ModelRequest) -> BoxFuture<'a, Result<ModelStream, Error>> {
        let steps = VecDeque::from(self.play(model, request));
        async move {
            if let Some(Step::Refuse(refusal)) = steps.front() {
                return Err(Error::Refused(Box::new(refusal.clone())));
            }
            Ok(stream::unfold(steps, next).boxed())
        }
        .boxed()
    }
}

async fn next(mut steps: VecDeque<Step>) -> Option<(Result<super::ModelEvent, Error>, VecDeque<Step>)> {
    loop {
        let error = match steps.pop_front()? {
            Step::Event(event) => return Some((Ok(event), steps)),
            Step::Wait(pause) => {
                tokio::time::sleep(pause).await;
                continue;
            }
            Step::Stall => std::future::pending().await,
            Step::Refuse(refusal) => Error::Refused(Box::new(refusal)),
            Step::Cut => Error::Cut(None),
        };
        return Some((Err(error), VecDeque::new()));
    }
}

#[cfg(test)]
mod tests;
