//! The tunnels of a connection.

use std::sync::{Arc, PoisonError};

use hothouse_protocol::ToInit;

use super::super::error::Lost;
use super::super::tunnel::{self, Tunnels};
use super::{ABANDONED_MAX, Link};

impl Link {
    /// New tunnels come here, until the answer is dropped.
    pub(in super::super) fn take_tunnels(self: &Arc<Self>) -> Tunnels {
        let incoming = self.waiting().tunnels.take();
        Tunnels {
            link: Arc::clone(self),
            incoming,
        }
    }

    /// All tunnels are closed, and new ones refused.
    pub(in super::super) fn refuse_tunnels(&self) {
        let open = self.waiting().tunnels.refuse();
        self.tell_later(open.into_iter().map(|stream| ToInit::Close { stream }));
    }

    /// Init may send so much more through a tunnel.
    pub(in super::super) fn widen_tunnel(&self, stream: u32, credit: u32) {
        self.waiting().tunnels.widen(stream, credit);
    }

    /// This end of a tunnel has sent its last.
    pub(in super::super) fn end_tunnel(&self, stream: u32) {
        self.waiting().tunnels.end(stream);
    }

    /// Nobody here uses this tunnel any more.
    pub(in super::super) fn close_tunnel(&self, stream: u32) {
        let is_news = self.waiting().tunnels.close(stream);
        self.tell_later(is_news.then_some(ToInit::Close { stream }));
    }

    pub(super) fn open_tunnel(self: &Arc<Self>, stream: u32, port: u16) -> Result<(), Lost> {
        let opened = self.waiting().tunnels.open(stream)?;
        match opened {
            None => {
                self.tell_later([ToInit::Close { stream }]);
                let waiting = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).len();
                if waiting > ABANDONED_MAX {
                    return Err(Lost::Broken("tunnels that nobody takes, without end"));
                }
            }
            Some(opened) => {
                let tunnel = tunnel::halves(self, (stream, port), opened.incoming, opened.credit);
                // It is closed when it is dropped here: who takes tunnels has gone, or has enough of them.
                drop(opened.taker.try_send(tunnel));
            }
        }
        Ok(())
    }
}
