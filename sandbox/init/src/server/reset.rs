//! Requests to make the sandbox as it was.

use hothouse_protocol::{Failure, FromInit};

use super::{Server, kill_everything};
use crate::cleaner::Cleaner;
use crate::clock::Moment;
use crate::connection::Lost;
use crate::trouble::Trouble;

impl Server {
    /// Resets when nothing runs any more, and answers when that is done.
    pub(super) fn clean(&mut self) -> Result<(), Trouble> {
        let Some(around) = &self.around else { return Ok(()) };
        if !self.to_reset.is_empty() && self.runs.is_empty() && self.cleaner.is_none() {
            self.spare = None;
            kill_everything();
            let streams = std::mem::take(&mut self.to_reset);
            match Cleaner::fork(streams.clone(), self.counted.as_ref(), around) {
                Ok(cleaner) => self.cleaner = Some(cleaner),
                Err(failure) => self.answer(&streams, &Err(failure))?,
            }
        }
        if let Some(cleaner) = &mut self.cleaner
            && let Some(done) = cleaner.hear()
        {
            let streams = std::mem::take(&mut cleaner.streams);
            // None was left after this was counted, and nobody is there who could have opened one.
            if done.is_ok() {
                self.counted = cleaner.counted.take();
            }
            self.cleaner = None;
            self.spare_at = Moment::now();
            self.answer(&streams, &done)?;
        }
        Ok(())
    }

    fn answer(&mut self, streams: &[u32], done: &Result<(), Failure>) -> Result<(), Lost> {
        for stream in streams.iter().copied() {
            self.connection.send(match done.clone() {
                Ok(()) => FromInit::Done { stream },
                Err(failure) => FromInit::Failed { stream, failure },
            })?;
        }
        Ok(())
    }
}
