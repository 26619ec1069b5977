//! A connection that sends prepared requests: HTTP/1.1 with keep-alive and nothing else.
//!
//! The load generator shares the machine with what it measures, so it must cost as little as it can: one write and, as
//! a rule, one read a call, no allocation, no parsing beyond status and length.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer larger than this is refused.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One connection to the server.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What the server answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<'b> {
    pub(super) status: u16,
    pub(super) body: &'b [u8],
}

impl Connection {
    /// Connects to `host:port`.
    pub(super) async fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 << 10),
        })
    }

    /// Sends one request and reads its answer. After an error the connection is of no more use.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        self.buffer.clear();
        self.stream.write_all(request).await?;
        let head = loop {
            if let Some(head) = Head::read(&self.buffer)? {
                break head;
            }
            self.fill().await?;
        };
        while self.buffer.len() < head.end + head.body_bytes {
            self.fill().await?;
        }
        let body = self
            .buffer
            .get(head.end..head.end + head.body_bytes)
            .unwrap_or_default();
        Ok(Answer {
            status: head.status,
            body,
        })
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if self.buffer.len() > ANSWER_BYTES_MAX => Err(invalid("the answer is too large")),
            _ => Ok(()),
        }
    }
}

/// What counts of an answer's head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Where the body begins.
    end: usize,
    body_bytes: usize,
}

impl Head {
    /// The head, once it is there as a whole.
    fn read(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head =
            str::from_utf8(bytes.get(..end).unwrap_or_default()).map_err(|_bytes| invalid("the head is no text"))?;
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| invalid("no status"))?;
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let body_bytes = match length {
            Some((_, length)) => length.trim().parse().map_err(|_text| invalid("no length"))?,
            None if status == 204 => 0,
            None => return Err(invalid("an answer without a content-length")),
        };
        Ok(Some(Self {
            status,
            end: end + 4,
            body_bytes,
        }))
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The bytes of a request.
pub(super) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers = headers.collect::<String>();
    let head = format!(
        "{method} {target} HTTP/1.1\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let text = b"HTTP/1.1 202 Accepted\r\nLocation: /x\r\nContent-Length: 2\r\n\r\n{}";
        let whole = Head {
            status: 202,
            end: text.len() - 2,
            body_bytes: 2,
        };
        for cut in 0..text.len() {
            let read = Head::read(&text[..cut]).unwrap();
            assert_eq!(read.is_some(), cut >= whole.end, "cut at {cut}");
        }
        assert_eq!(Head::read(text).unwrap(), Some(whole));
    }

    #[test]
    fn an_answer_of_unknown_length_is_refused() {
        assert!(Head::read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(Head::read(b"nonsense\r\n\r\n").is_err());
        assert!(Head::read(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().is_some());
    }

    #[tokio::test]
    async fn one_connection_serves_many_calls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let sent = request("POST", "/jobs", &[("host", "h")], b"abc");
        assert_eq!(sent, b"POST /jobs HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc");
        let length = sent.len();
        let server = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; length];
            for n in 0..3_usize {
                stream.read_exact(&mut request).await.unwrap();
                let body = "x".repeat(n * 50_000);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let client = async move {
            let mut connection = Connection::open(&address).await.unwrap();
            for n in 0..3_usize {
                let answer = connection.exchange(&sent).await.unwrap();
                assert_eq!((answer.status, answer.body.len()), (200, n * 50_000));
            }
            assert!(connection.exchange(&sent).await.is_err(), "the server is gone");
        };
        tokio::join!(server, client);
    }
}
