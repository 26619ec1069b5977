//! A wire between processes and what they need, which can be cut, held, slowed down and mended.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that are carried at once.
const PIECE: usize = 64 << 10;

/// See the module. Ends with its last connection when it is dropped.
pub(crate) struct Proxy {
    state: watch::Sender<State>,
    port: u16,
    path: Option<PathBuf>,
    _tasks: JoinSet<()>,
}

/// What the wire does with its connections.
#[derive(Clone, Copy, Default)]
struct State {
    is_cut: bool,
    is_held: bool,
    delay: Duration,
    /// How often every connection there was has been silenced for good.
    silences: u32,
}

impl Proxy {
    /// No proxy: for a dependency that the cluster does not have.
    pub(super) fn none() -> Self {
        Self {
            state: watch::Sender::default(),
            port: 0,
            path: None,
            _tasks: JoinSet::new(),
        }
    }

    pub(crate) async fn tcp(to: (String, u16)) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sender = watch::Sender::default();
        let mut tasks = JoinSet::new();
        let state = sender.subscribe();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let to = to.clone();
                let connect = async move { TcpStream::connect((to.0.as_str(), to.1)).await };
                connections.spawn(pass(client, connect, state.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            state: sender,
            port,
            path: None,
            _tasks: tasks,
        }
    }

    pub(super) fn unix(to: &Path, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let sender = watch::Sender::default();
        let mut tasks = JoinSet::new();
        let (state, to) = (sender.subscribe(), to.to_owned());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let to = to.clone();
                let connect = async move { UnixStream::connect(to).await };
                connections.spawn(pass(client, connect, state.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            state: sender,
            port: 0,
            path: Some(path.to_owned()),
            _tasks: tasks,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The socket, when there is one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Breaks every connection, and every new one at once.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.is_cut = true);
    }

    /// Keeps back whatever is sent, on connections that there are and new ones, and loses nothing: a black hole, until it
    /// is mended.
    pub(crate) fn hold(&self) {
        self.state.send_modify(|state| state.is_held = true);
    }

    /// Makes every piece that is sent late, both ways.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Lets every connection that there is stand still for good, with no word to either end, as when a machine or a
    /// firewall dies; new ones go through.
    pub(crate) fn silence(&self) {
        self.state.send_modify(|state| state.silences += 1);
    }

    /// Lets everything through.
    pub(crate) fn mend(&self) {
        self.state.send_modify(|state| {
            *state = State {
                silences: state.silences,
                ..State::default()
            }
        });
    }
}

/// Carries one connection until an end closes it or the wire is cut.
async fn pass<C, S>(client: C, connect: impl Future<Output = std::io::Result<S>>, state: watch::Receiver<State>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let begun = *state.borrow();
    if begun.is_cut {
        return;
    }
    let Ok(server) = connect.await else { return };
    let (client_reader, client_writer) = tokio::io::split(client);
    let (server_reader, server_writer) = tokio::io::split(server);
    let mut watched = state.clone();
    let changed = watched.wait_for(|now| now.is_cut || now.silences != begun.silences);
    let is_silenced = tokio::select! {
        _ended = async {
            tokio::join!(
                pump(client_reader, server_writer, state.clone()),
                pump(server_reader, client_writer, state.clone()),
            )
        } => false,
        now = changed => now.is_ok_and(|now| !now.is_cut),
    };
    if is_silenced {
        std::future::pending::<()>().await;
    }
}

/// One direction, until its reader ends or its writer does not take any more.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut state: watch::Receiver<State>) {
    let mut piece = vec![0; PIECE];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        let now = state.wait_for(|now| !now.is_held).await.map(|now| *now);
        let Ok(now) = now else { return };
        if !now.delay.is_zero() {
            tokio::time::sleep(now.delay).await;
        }
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
    // The other direction may have more to say; an error here means that nobody listens.
    drop(to.shutdown().await);
}
