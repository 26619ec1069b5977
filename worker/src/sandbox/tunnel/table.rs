//! What a link knows of its tunnels: who takes new ones, and where the bytes of open ones go.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hothouse_protocol::{TUNNEL_BIT, TUNNEL_WINDOW, TUNNELS_MAX, cost};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc};

use super::super::error::Lost;
use super::{FRAMES, Incoming, Tunnel};

/// The most tunnels here at once. Init counts those that it has; one that it is done with may still be known here when the
/// next comes, because whoever ended it has not come to say so.
const OPEN_MAX: usize = 2 * TUNNELS_MAX;

/// The tunnels of a link.
#[derive(Debug, Default)]
pub(in super::super) struct Table {
    taker: Option<mpsc::Sender<Tunnel>>,
    open: HashMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    incoming: mpsc::Sender<Incoming>,
    credit: Arc<Semaphore>,
    /// What init may still send.
    window: u32,
    has_ended: bool,
    is_ended_here: bool,
}

/// What a new tunnel's halves are made of.
#[derive(Debug)]
pub(in super::super) struct Opened {
    pub(in super::super) incoming: mpsc::Receiver<Incoming>,
    pub(in super::super) credit: Arc<Semaphore>,
    pub(in super::super) taker: mpsc::Sender<Tunnel>,
}

impl Table {
    /// From now on new tunnels go here. Nobody took them before.
    pub(in super::super) fn take(&mut self) -> mpsc::Receiver<Tunnel> {
        // As many as can be open: init's own limit is the only one here.
        let (taker, incoming) = mpsc::channel(TUNNELS_MAX);
        self.taker = Some(taker);
        incoming
    }

    /// Nobody takes new tunnels any more; answers those that are open, which must be closed.
    pub(in super::super) fn refuse(&mut self) -> Vec<u32> {
        self.taker = None;
        std::mem::take(&mut self.open).into_keys().collect()
    }

    /// A program connected. None when nobody takes it.
    pub(in super::super) fn open(&mut self, stream: u32) -> Result<Option<Opened>, Lost> {
        if stream & TUNNEL_BIT == 0 || self.open.contains_key(&stream) {
            return Err(Lost::Broken("a tunnel with a number that it may not have"));
        }
        if self.open.len() >= OPEN_MAX {
            return Err(Lost::Broken("more tunnels than allowed"));
        }
        let Some(taker) = self.taker.clone() else {
            return Ok(None);
        };
        let (sender, incoming) = mpsc::channel(FRAMES + 1);
        let credit = Arc::new(Semaphore::new(TUNNEL_WINDOW as usize));
        let entry = Entry {
            incoming: sender,
            credit: Arc::clone(&credit),
            window: TUNNEL_WINDOW,
            has_ended: false,
            is_ended_here: false,
        };
        self.open.insert(stream, entry);
        Ok(Some(Opened {
            incoming,
            credit,
            taker,
        }))
    }

    /// Bytes from the program. Those of a tunnel that is over are dropped.
    pub(in super::super) fn data(&mut self, stream: u32, data: Bytes, is_end: bool) -> Result<(), Lost> {
        let Some(entry) = self.open.get_mut(&stream) else {
            return Ok(());
        };
        if entry.has_ended {
            return Err(Lost::Broken("bytes of a tunnel after its end"));
        }
        if !data.is_empty() {
            let window = entry.window.checked_sub(cost(data.len()));
            entry.window = window.ok_or(Lost::Broken("more of a tunnel than its window allows"))?;
            tell(&entry.incoming, Incoming::Data(data))?;
        }
        if is_end {
            entry.has_ended = true;
            tell(&entry.incoming, Incoming::End)?;
            self.forget_if_over(stream);
        }
        Ok(())
    }

    /// Init may send so much more.
    pub(in super::super) fn widen(&mut self, stream: u32, credit: u32) {
        if let Some(entry) = self.open.get_mut(&stream) {
            entry.window = entry.window.saturating_add(credit);
        }
    }

    /// The program took so much.
    pub(in super::super) fn grant(&self, stream: u32, credit: u32) -> Result<(), Lost> {
        let Some(entry) = self.open.get(&stream) else {
            return Ok(());
        };
        let credit = credit as usize;
        if entry.credit.available_permits().saturating_add(credit) > TUNNEL_WINDOW as usize {
            return Err(Lost::Broken("more credit than was used"));
        }
        entry.credit.add_permits(credit);
        Ok(())
    }

    /// This end sends no more.
    pub(in super::super) fn end(&mut self, stream: u32) {
        if let Some(entry) = self.open.get_mut(&stream) {
            entry.is_ended_here = true;
            self.forget_if_over(stream);
        }
    }

    /// A tunnel is over; whether the other end does not know yet.
    pub(in super::super) fn close(&mut self, stream: u32) -> bool {
        let entry = self.open.remove(&stream);
        if let Some(entry) = &entry {
            entry.credit.close();
        }
        entry.is_some()
    }

    fn forget_if_over(&mut self, stream: u32) {
        if self
            .open
            .get(&stream)
            .is_some_and(|entry| entry.has_ended && entry.is_ended_here)
        {
            self.open.remove(&stream);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Who waits to send hears that nobody reads.
        self.credit.close();
    }
}

fn tell(incoming: &mpsc::Sender<Incoming>, what: Incoming) -> Result<(), Lost> {
    match incoming.try_send(what) {
        Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        Err(TrySendError::Full(_)) => Err(Lost::Broken("more of a tunnel than its window allows")),
    }
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;

    use super::*;

    const STREAM: u32 = TUNNEL_BIT | 7;

    #[test]
    fn without_a_taker_nothing_opens() {
        let mut table = Table::default();
        assert_matches!(table.open(STREAM), Ok(None));
        let _taken = table.take();
        assert_matches!(table.open(STREAM), Ok(Some(_)));
        assert_eq!(table.refuse(), [STREAM]);
        assert_matches!(table.open(STREAM), Ok(None));
    }

    #[test]
    fn an_init_that_breaks_the_rules_is_found_out() {
        let mut table = Table::default();
        let _taken = table.take();
        assert_matches!(table.open(7), Err(Lost::Broken(_)));
        let opened = table.open(STREAM).unwrap().unwrap();
        assert_matches!(table.open(STREAM), Err(Lost::Broken(_)));
        assert_matches!(table.grant(STREAM, 1), Err(Lost::Broken(_)));
        let half = Bytes::from(vec![0; TUNNEL_WINDOW as usize / 2]);
        assert_matches!(table.data(STREAM, half.clone(), false), Ok(()));
        assert_matches!(table.data(STREAM, half.clone(), false), Err(Lost::Broken(_)));
        table.widen(STREAM, cost(half.len()));
        assert_matches!(table.data(STREAM, half, true), Ok(()));
        assert_matches!(table.data(STREAM, Bytes::new(), true), Err(Lost::Broken(_)));
        drop(opened);
        for number in 1..OPEN_MAX {
            let number = u32::try_from(number).unwrap();
            assert_matches!(table.open(STREAM + number), Ok(Some(_)));
        }
        assert_matches!(table.open(TUNNEL_BIT), Err(Lost::Broken(_)));
    }

    #[test]
    fn a_tunnel_is_forgotten_when_both_ways_have_ended() {
        let mut table = Table::default();
        let _taken = table.take();
        let opened = table.open(STREAM).unwrap().unwrap();
        table.end(STREAM);
        table.data(STREAM, Bytes::from_static(b"x"), true).unwrap();
        assert!(opened.credit.is_closed() && !table.close(STREAM));
    }
}
