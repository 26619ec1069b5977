//! Who waits for what of a connection.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hothouse_protocol::{About, Channel, Failure, Rested, WINDOW, cost};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::error::Lost;
use super::super::tunnel;
use super::Event;

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) events: mpsc::Sender<Event>,
    pub(super) input_credit: Arc<Semaphore>,
    /// What init may still send of each output.
    pub(super) windows: [u32; 2],
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) runs: HashMap<u32, Listener>,
    pub(super) done: HashMap<u32, oneshot::Sender<()>>,
    pub(super) resets: HashMap<u32, oneshot::Sender<Result<(), Failure>>>,
    pub(super) rested: HashMap<u32, oneshot::Sender<Rested>>,
    pub(super) pongs: HashMap<u64, oneshot::Sender<()>>,
    pub(super) hello: Option<oneshot::Sender<About>>,
    pub(super) tunnels: tunnel::Table,
}

impl Waiting {
    /// Output, which must be within its window: the number of events alone would let an init that lies fill the memory.
    pub(super) fn output(&mut self, stream: u32, channel: Channel, data: Bytes) -> Result<(), Lost> {
        if let Some(listener) = self.runs.get_mut(&stream) {
            let window = &mut listener.windows[channel as usize];
            let left = window.checked_sub(cost(data.len()));
            *window = left.ok_or(Lost::Broken("more output than the window allows"))?;
        }
        self.tell(stream, Event::Output(channel, data))
    }

    /// Init may send so much more.
    pub(super) fn widen(&mut self, stream: u32, channel: Channel, credit: u32) {
        if let Some(listener) = self.runs.get_mut(&stream) {
            let window = &mut listener.windows[channel as usize];
            *window = window.saturating_add(credit);
        }
    }

    pub(super) fn tell(&self, stream: u32, event: Event) -> Result<(), Lost> {
        let Some(listener) = self.runs.get(&stream) else {
            return Ok(());
        };
        match listener.events.try_send(event) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Lost::Broken("more output than the window allows")),
        }
    }

    pub(super) fn tell_last(&mut self, stream: u32, event: Event) -> Result<(), Lost> {
        self.tell(stream, event)?;
        if let Some(listener) = self.runs.remove(&stream) {
            listener.input_credit.close();
        }
        Ok(())
    }

    /// A request without output is done, or could not be. Nobody need wait for it any more.
    pub(super) fn done(&mut self, stream: u32) {
        if let Some(reset) = self.resets.remove(&stream) {
            let _is_awaited = reset.send(Ok(()));
        } else if let Some(done) = self.done.remove(&stream) {
            let _is_awaited = done.send(());
        }
    }

    /// What was asked of this stream could not be done.
    pub(super) fn failed(&mut self, stream: u32, failure: Failure) -> Result<(), Lost> {
        match self.resets.remove(&stream) {
            Some(reset) => {
                let _is_awaited = reset.send(Err(failure));
                Ok(())
            }
            None => self.tell_last(stream, Event::Failed(failure)),
        }
    }

    pub(super) fn grant(&self, stream: u32, credit: u32) -> Result<(), Lost> {
        let Some(listener) = self.runs.get(&stream) else {
            return Ok(());
        };
        let credit = credit as usize;
        if listener.input_credit.available_permits().saturating_add(credit) > WINDOW as usize {
            return Err(Lost::Broken("more credit than was used"));
        }
        listener.input_credit.add_permits(credit);
        Ok(())
    }
}
