//! A wire between processes and what they need, which can be cut and mended.

use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// See the module. Ends with its last connection when it is dropped.
pub(crate) struct Proxy {
    is_whole: watch::Sender<bool>,
    silence: watch::Sender<u32>,
    port: u16,
    path: Option<PathBuf>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// No proxy: for a dependency that the cluster does not have.
    pub(super) fn none() -> Self {
        Self {
            is_whole: watch::Sender::new(true),
            silence: watch::Sender::new(0),
            port: 0,
            path: None,
            _tasks: JoinSet::new(),
        }
    }

    pub(super) async fn tcp(to: (String, u16)) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (is_whole, silence) = (watch::Sender::new(true), watch::Sender::new(0));
        let mut tasks = JoinSet::new();
        let state = (is_whole.subscribe(), silence.subscribe());
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
            is_whole,
            silence,
            port,
            path: None,
            _tasks: tasks,
        }
    }

    pub(super) fn unix(to: &Path, path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (is_whole, silence) = (watch::Sender::new(true), watch::Sender::new(0));
        let mut tasks = JoinSet::new();
        let (state, to) = ((is_whole.subscribe(), silence.subscribe()), to.to_owned());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let to = to.clone();
                connections.spawn(pass(
                    client,
                    async move { UnixStream::connect(to).await },
                    state.clone(),
                ));
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            is_whole,
            silence,
            port: 0,
            path: Some(path.to_owned()),
            _tasks: tasks,
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The socket, when there is one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Breaks every connection, and every new one at once.
    pub(crate) fn cut(&self) {
        self.is_whole.send_replace(false);
    }

    /// Lets every connection that there is stand still for good, with no word to either end, as when a machine or a
    /// firewall dies; new ones go through.
    pub(crate) fn silence(&self) {
        self.silence.send_modify(|times| *times += 1);
    }

    /// Lets new connections through.
    pub(crate) fn mend(&self) {
        self.is_whole.send_replace(true);
    }
}

/// Carries one connection until an end closes it or the wire is cut.
async fn pass<C, S>(
    mut client: C,
    connect: impl Future<Output = std::io::Result<S>>,
    (mut is_whole, mut silence): (watch::Receiver<bool>, watch::Receiver<u32>),
) where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    if !*is_whole.borrow() {
        return;
    }
    silence.mark_unchanged();
    let Ok(mut server) = connect.await else { return };
    let is_silenced = tokio::select! {
        _ended = copy_bidirectional(&mut client, &mut server) => false,
        _cut = is_whole.wait_for(|is_whole| !is_whole) => false,
        _silenced = silence.changed() => true,
    };
    if is_silenced {
        std::future::pending::<()>().await;
    }
}
