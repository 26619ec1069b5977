//! Recordings: the bytes of a real server's stream, played again on either wire.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use serde::Deserialize;

use super::perform::Step;
use crate::model::wire::{Decoder, Wire};
use crate::model::{Error, ModelEvent, sse};

/// A recording: a stream as its server sent it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recording {
    /// The wire that it was taken from.
    pub wire: Wire,
    /// The file that it is in, beside the script's; none when it stands in `text`.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The stream itself: `event:` and `data:` lines.
    #[serde(default)]
    pub text: String,
}

impl Recording {
    /// Reads the file, if one is named, from `folder`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn load(&mut self, folder: &Path) -> std::io::Result<()> {
        if let Some(file) = &self.file {
            self.text = std::fs::read_to_string(folder.join(file))
                .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
        }
        Ok(())
    }

    /// Its steps, with a pause before each piece. One that broke off breaks off.
    pub(super) fn steps(&self, pause: Duration) -> Vec<Step> {
        let bytes = stream::iter([Ok(Bytes::copy_from_slice(self.text.as_bytes()))]);
        let events = sse::decode(bytes, Decoder::new(self.wire)).collect::<Vec<_>>();
        let events = events.now_or_never().unwrap_or_default();
        let mut steps = Vec::with_capacity(events.len());
        for event in events {
            if !pause.is_zero() && event.as_ref().is_ok_and(ModelEvent::is_content) {
                steps.push(Step::Wait(pause));
            }
            steps.push(match event {
                Ok(event) => Step::Event(event),
                Err(Error::Refused(refusal)) => Step::Refuse(*refusal),
                Err(_) => Step::Cut,
            });
        }
        steps
    }
}
