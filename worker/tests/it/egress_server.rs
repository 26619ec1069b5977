//! Servers on this machine that sandboxes reach, or must not reach: one plain, one with TLS. They keep what they heard.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The name of the server with TLS.
pub(crate) const SECURE: &str = "secure.test";

#[derive(Debug, Default)]
struct Heard {
    connections: usize,
    ended: usize,
    bytes: Vec<u8>,
}

/// A server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// PEM of its certificate, when it has one.
    pub(crate) certificate: String,
    heard: Arc<Mutex<Heard>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn plain() -> Self {
        Self::start(None, String::new()).await
    }

    pub(crate) async fn tls() -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec![SECURE.to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), cert.pem()).await
    }

    async fn start(tls: Option<TlsAcceptor>, certificate: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (mut tasks, theirs) = (JoinSet::new(), Arc::clone(&heard));
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                theirs.lock().unwrap().connections += 1;
                let (heard, tls) = (Arc::clone(&theirs), tls.clone());
                open.spawn(converse(stream, tls, heard));
            }
        });
        Self {
            address,
            certificate,
            heard,
            _tasks: tasks,
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.heard.lock().unwrap().connections
    }

    pub(crate) fn ended(&self) -> usize {
        self.heard.lock().unwrap().ended
    }

    pub(crate) fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap().bytes).into_owned()
    }
}

async fn converse(stream: TcpStream, tls: Option<TlsAcceptor>, heard: Arc<Mutex<Heard>>) {
    if let Some(tls) = tls {
        if let Ok(stream) = tls.accept(stream).await {
            serve(stream, &heard).await;
        }
    } else {
        serve(stream, &heard).await;
    }
    heard.lock().unwrap().ended += 1;
}

/// Answers one request by its path and closes: `/redirect` leads to a private address, `/flood` is 4 MiB, `/echo` gives
/// the body back, `/hang` never ends.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, heard: &Mutex<Heard>) {
    let mut request = Vec::new();
    let head = loop {
        let at = request.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(at) = at {
            break String::from_utf8_lossy(&request[..at]).into_owned();
        }
        if read(&mut stream, &mut request, heard).await == 0 {
            return;
        }
    };
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let whole = head.len() + 4 + length.unwrap_or(0_usize);
    while request.len() < whole {
        if read(&mut stream, &mut request, heard).await == 0 {
            return;
        }
    }
    let body = match head.split(' ').nth(1).unwrap_or_default() {
        "/redirect" => {
            let answer = "HTTP/1.1 302 Found\r\nLocation: http://private.test/\r\nContent-Length: 0\r\n\r\n";
            drop(stream.write_all(answer.as_bytes()).await);
            return;
        }
        "/flood" => vec![b'x'; 4 << 20],
        "/echo" => request.split_off(head.len() + 4),
        "/hang" => {
            while read(&mut stream, &mut request, heard).await > 0 {}
            return;
        }
        _ => b"hello from outside".to_vec(),
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    drop(stream.write_all(&[head.as_bytes(), &body].concat()).await);
    drop(stream.shutdown().await);
    // What is sent after the request is heard too.
    while read(&mut stream, &mut request, heard).await > 0 {}
}

async fn read(stream: &mut (impl AsyncRead + Unpin), request: &mut Vec<u8>, heard: &Mutex<Heard>) -> usize {
    let before = request.len();
    let len = stream.read_buf(request).await.unwrap_or(0);
    heard.lock().unwrap().bytes.extend_from_slice(&request[before..]);
    len
}
