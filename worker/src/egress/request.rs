//! The head of a request to the proxy: pure.
//!
//! Strict where programs differ in what they read: a head that two of them could understand in two ways is refused. A
//! plain request is written anew for the server, with nothing in it that is meant for the proxy, and the connection to
//! the server ends with its answer.

use common::egress::Destination;

use super::refusal::Refusal;

/// The longest head, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;

const HEADERS_MAX: usize = 100;

/// Headers that are for the next station only.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a program wants of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A tunnel to there.
    Connect(Destination),
    /// A plain request.
    Plain(Plain),
}

/// A plain request, as it goes to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    /// The method.
    pub(super) method: String,
    /// The server.
    pub(super) destination: Destination,
    /// Its head, written anew.
    pub(super) head: Vec<u8>,
    /// Bytes of body that follow.
    pub(super) body_bytes: u64,
}

impl Request {
    /// The server.
    pub(super) fn destination(&self) -> &Destination {
        match self {
            Self::Connect(destination) | Self::Plain(Plain { destination, .. }) => destination,
        }
    }

    /// The method.
    pub(super) fn method(&self) -> &str {
        match self {
            Self::Connect(_) => "CONNECT",
            Self::Plain(plain) => &plain.method,
        }
    }
}

/// Where the head ends in `bytes`, its empty line counted; none when it is not whole yet.
///
/// # Errors
/// [`Refusal::HeadTooLarge`].
pub(super) fn head_len(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let end = bytes
        .windows(4)
        .take(HEAD_BYTES_MAX)
        .position(|four| four == b"\r\n\r\n");
    match end {
        Some(at) => Ok(Some(at + 4)),
        None if bytes.len() >= HEAD_BYTES_MAX => Err(Refusal::HeadTooLarge),
        None => Ok(None),
    }
}

/// Reads a whole head.
///
/// # Errors
/// [`Refusal::Malformed`], [`Refusal::HostMismatch`], [`Refusal::NoLength`].
pub(super) fn parse(head: &[u8]) -> Result<Request, Refusal> {
    let text = str::from_utf8(head).map_err(|_not_text| Refusal::Malformed)?;
    let text = text.strip_suffix("\r\n\r\n").ok_or(Refusal::Malformed)?;
    let mut lines = text.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let &[method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = line.as_slice() else {
        return Err(Refusal::Malformed);
    };
    if !is_token(method) || !target.bytes().all(|byte| (0x21..=0x7e).contains(&byte)) {
        return Err(Refusal::Malformed);
    }
    let headers = Headers::read(lines)?;
    if method == "CONNECT" {
        let destination = Destination::parse(target, None).ok_or(Refusal::Malformed)?;
        headers.check_host(&destination, None)?;
        return match headers.body_bytes()? {
            0 => Ok(Request::Connect(destination)),
            _ => Err(Refusal::Malformed),
        };
    }
    let (destination, path) = absolute(target).ok_or(Refusal::Malformed)?;
    if !headers.check_host(&destination, Some(80))? && version == "HTTP/1.1" {
        return Err(Refusal::Malformed);
    }
    let body_bytes = headers.body_bytes()?;
    let head = headers.rewritten(&format!("{method} {path} {version}"), &destination)?;
    Ok(Request::Plain(Plain {
        method: method.to_owned(),
        destination,
        head,
        body_bytes,
    }))
}

/// Splits `http://host:port/path?query`. Names and passwords in front of the host are how hosts are disguised.
fn absolute(target: &str) -> Option<(Destination, String)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") || rest.contains('#') {
        return None;
    }
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Some((Destination::parse(authority, Some(80))?, path))
}

struct Headers<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Headers<'a> {
    fn read(lines: impl Iterator<Item = &'a str>) -> Result<Self, Refusal> {
        let header = |line: &'a str| {
            let (name, value) = line.split_once(':')?;
            let is_printable = value.chars().all(|c| c == '\t' || !c.is_control());
            (is_token(name) && is_printable).then(|| (name, value.trim_matches([' ', '\t'])))
        };
        let headers: Vec<_> = lines.map(header).collect::<Option<_>>().ok_or(Refusal::Malformed)?;
        if headers.len() > HEADERS_MAX {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(Self(headers))
    }

    fn all<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'a str> + 'b {
        let named = self.0.iter().filter(move |(given, _)| given.eq_ignore_ascii_case(name));
        named.map(|(_, value)| *value)
    }

    /// Whether there is a Host; it must be there once at most and say the same.
    fn check_host(&self, destination: &Destination, default_port: Option<u16>) -> Result<bool, Refusal> {
        let mut hosts = self.all("host");
        let Some(host) = hosts.next() else { return Ok(false) };
        if hosts.next().is_some() {
            return Err(Refusal::Malformed);
        }
        // A Host without a port after CONNECT means the port of CONNECT.
        let default_port = default_port.unwrap_or(destination.port);
        if Destination::parse(host, Some(default_port)).as_ref() != Some(destination) {
            return Err(Refusal::HostMismatch);
        }
        Ok(true)
    }

    fn body_bytes(&self) -> Result<u64, Refusal> {
        if self.all("transfer-encoding").next().is_some() {
            return Err(Refusal::NoLength);
        }
        let mut lengths = self.all("content-length");
        let Some(length) = lengths.next() else { return Ok(0) };
        let is_number = (1..=18).contains(&length.len()) && length.bytes().all(|byte| byte.is_ascii_digit());
        match lengths.next() {
            None if is_number => length.parse().map_err(|_overflow| Refusal::Malformed),
            _ => Err(Refusal::Malformed),
        }
    }

    fn rewritten(&self, first_line: &str, destination: &Destination) -> Result<Vec<u8>, Refusal> {
        let listed = self.all("connection").flat_map(|value| value.split(','));
        let dropped: Vec<String> = listed.map(|name| name.trim().to_ascii_lowercase()).collect();
        // Without them the rest would mean something else.
        if dropped.iter().any(|name| name == "content-length" || name == "host") {
            return Err(Refusal::Malformed);
        }
        let host = match destination.port {
            80 => destination.host.to_string(),
            _ => destination.to_string(),
        };
        let mut head = format!("{first_line}\r\nHost: {host}\r\n");
        for (name, value) in &self.0 {
            let lower = name.to_ascii_lowercase();
            if !HOP_BY_HOP.contains(&lower.as_str()) && !dropped.contains(&lower) {
                head.extend([name, ": ", value, "\r\n"]);
            }
        }
        head.push_str("Connection: close\r\n\r\n");
        Ok(head.into_bytes())
    }
}

fn is_token(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Result<Request, Refusal> {
        parse(head.replace('\n', "\r\n").as_bytes())
    }

    fn plain(head: &str) -> Plain {
        match request(head).unwrap() {
            Request::Plain(plain) => plain,
            Request::Connect(_) => panic!("a tunnel"),
        }
    }

    #[rstest::rstest]
    #[case("CONNECT a.org:443 HTTP/1.1\nHost: a.org:443\n\n", "a.org:443")]
    #[case("CONNECT A.org:8443 HTTP/1.0\n\n", "a.org:8443")]
    #[case("CONNECT a.org:443 HTTP/1.1\nHost: A.ORG\n\n", "a.org:443")]
    #[case(
        "CONNECT [2001:db8::1]:443 HTTP/1.1\nProxy-Connection: keep-alive\n\n",
        "[2001:db8::1]:443"
    )]
    fn a_tunnel_is_asked_for(#[case] head: &str, #[case] expected: &str) {
        let expected = Destination::parse(expected, None).unwrap();
        assert_eq!(request(head), Ok(Request::Connect(expected)));
    }

    #[test]
    fn a_plain_request_is_written_anew() {
        let plain = plain(
            "POST http://A.org:8080?x=1 HTTP/1.1\nHost: a.org:8080\nContent-Length: 5\nProxy-Authorization: x\n\
             Connection: X-Private, keep-alive\nX-Private: 1\nAccept:  */* \nUpgrade: websocket\n\n",
        );
        assert_eq!(plain.destination.to_string(), "a.org:8080");
        assert_eq!(plain.body_bytes, 5);
        let expected = "POST /?x=1 HTTP/1.1\r\nHost: a.org:8080\r\nContent-Length: 5\r\nAccept: */*\r\n\
                        Connection: close\r\n\r\n";
        assert_eq!(String::from_utf8(plain.head).unwrap(), expected);
    }

    #[test]
    fn the_default_port_is_80() {
        let plain = plain("GET http://a.org HTTP/1.1\nHost: a.org\n\n");
        assert_eq!((plain.destination.port, plain.body_bytes), (80, 0));
        assert!(plain.head.starts_with(b"GET / HTTP/1.1\r\nHost: a.org\r\n"));
    }

    #[rstest::rstest]
    #[case::other_host("GET http://a.org/ HTTP/1.1\nHost: b.org\n\n", Refusal::HostMismatch)]
    #[case::other_port("GET http://a.org/ HTTP/1.1\nHost: a.org:81\n\n", Refusal::HostMismatch)]
    #[case::other_host_of_connect("CONNECT a.org:443 HTTP/1.1\nHost: b.org:443\n\n", Refusal::HostMismatch)]
    #[case::odd_host("GET http://a.org/ HTTP/1.1\nHost: a.org,b.org\n\n", Refusal::HostMismatch)]
    #[case::two_hosts("GET http://a.org/ HTTP/1.1\nHost: a.org\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::no_host("GET http://a.org/ HTTP/1.1\n\n", Refusal::Malformed)]
    #[case::path_only("GET / HTTP/1.1\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::https("GET https://a.org/ HTTP/1.1\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::ftp("GET ftp://a.org/ HTTP/1.1\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::user("GET http://a.org@b.org/ HTTP/1.1\nHost: b.org\n\n", Refusal::Malformed)]
    #[case::backslash("GET http://a.org\\@b.org/ HTTP/1.1\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::fragment("GET http://a.org/#x HTTP/1.1\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::number("GET http://2130706433/ HTTP/1.1\nHost: 2130706433\n\n", Refusal::Malformed)]
    #[case::hex("CONNECT 0x7f.1:443 HTTP/1.1\n\n", Refusal::Malformed)]
    #[case::no_port("CONNECT a.org HTTP/1.1\n\n", Refusal::Malformed)]
    #[case::port_0("CONNECT a.org:0 HTTP/1.1\n\n", Refusal::Malformed)]
    #[case::version("GET http://a.org/ HTTP/2\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::spaces("GET  http://a.org/ HTTP/1.1\nHost: a.org\n\n", Refusal::Malformed)]
    #[case::fold("GET http://a.org/ HTTP/1.1\nHost: a.org\n X: b\n\n", Refusal::Malformed)]
    #[case::space_in_name("GET http://a.org/ HTTP/1.1\nHost : a.org\n\n", Refusal::Malformed)]
    #[case::no_name("GET http://a.org/ HTTP/1.1\n: a.org\n\n", Refusal::Malformed)]
    #[case::chunked(
        "POST http://a.org/ HTTP/1.1\nHost: a.org\nTransfer-Encoding: chunked\n\n",
        Refusal::NoLength
    )]
    #[case::two_lengths(
        "POST http://a.org/ HTTP/1.1\nHost: a.org\nContent-Length: 1\nContent-Length: 2\n\n",
        Refusal::Malformed
    )]
    #[case::odd_length(
        "POST http://a.org/ HTTP/1.1\nHost: a.org\nContent-Length: +1\n\n",
        Refusal::Malformed
    )]
    #[case::no_length_left(
        "POST http://a.org/ HTTP/1.1\nHost: a.org\nContent-Length: 1\nConnection: Content-Length\n\n",
        Refusal::Malformed
    )]
    #[case::body_of_connect("CONNECT a.org:443 HTTP/1.1\nContent-Length: 1\n\n", Refusal::Malformed)]
    fn what_has_two_meanings_or_none_is_refused(#[case] head: &str, #[case] expected: Refusal) {
        assert_eq!(request(head), Err(expected));
    }

    #[rstest::rstest]
    #[case::line_feed_alone(b"GET http://a.org/ HTTP/1.1\nHost: b.org\r\nHost: a.org\r\n\r\n")]
    #[case::line_feed_in_a_value(b"GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\nX: 1\nHost: b.org\r\n\r\n")]
    #[case::return_in_a_value(b"GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\nX: 1\rHost: b.org\r\n\r\n")]
    #[case::zero(b"GET http://a.org/ HTTP/1.1\r\nHost: a.org\0\r\n\r\n")]
    #[case::not_text(b"GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\nX: \xff\r\n\r\n")]
    #[case::return_in_the_address(b"GET http://a.org/\rHTTP/1.1\r\n\r\n")]
    fn line_ends_are_of_one_kind(#[case] head: &[u8]) {
        assert_eq!(parse(head), Err(Refusal::Malformed));
    }

    #[test]
    fn a_head_is_bounded() {
        assert_eq!(head_len(b"GET http://a.org/ HTTP/1.1\r\n\r\nbody"), Ok(Some(30)));
        assert_eq!(head_len(b"GET http://a.org/ HTTP/1.1\r\n\r"), Ok(None));
        assert_eq!(head_len(&vec![b'x'; HEAD_BYTES_MAX]), Err(Refusal::HeadTooLarge));
        let many = "X: y\n".repeat(HEADERS_MAX + 1);
        let head = format!("GET http://a.org/ HTTP/1.1\n{many}\n");
        assert_eq!(request(&head), Err(Refusal::HeadTooLarge));
    }

    proptest::proptest! {
        #[test]
        fn what_passes_has_one_host_and_ends_the_connection(
            junk in proptest::collection::vec("(Host|Connection|X|Content-Length|TE): [ -~\r\n]{0,12}", 0..4),
        ) {
            let head = format!("GET http://a.org/ HTTP/1.1\r\nHost: a.org\r\n{}\r\n\r\n", junk.join("\r\n"));
            if let Ok(Request::Plain(plain)) = parse(head.as_bytes()) {
                let text = String::from_utf8(plain.head).unwrap().to_ascii_lowercase();
                proptest::prop_assert_eq!(text.matches("\r\nhost: a.org\r\n").count(), 1);
                proptest::prop_assert_eq!(text.matches("\r\nhost:").count(), 1);
                proptest::prop_assert!(text.ends_with("connection: close\r\n\r\n"));
                proptest::prop_assert_eq!(text.matches("\r\n\r\n").count(), 1);
            }
        }
    }
}
