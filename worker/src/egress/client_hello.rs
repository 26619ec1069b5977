//! The first message of a TLS connection, read only as far as it says where it goes: pure.
//!
//! Bounded and strict: a message that a server might read in another way than this is refused.

/// The longest message that is waited for, in bytes.
pub(super) const HELLO_BYTES_MAX: usize = 16 * 1024;

const RECORD_HEAD: usize = 5;
const RECORD_MAX: usize = 16 * 1024;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ENCRYPTED_CLIENT_HELLO: [u16; 2] = [0xfe0d, 0xffce];

/// Where a connection goes, as it says itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ClientHello {
    /// The name that it asks for.
    pub(super) server_name: Option<String>,
    /// Whether it may ask for another name where nobody on the way can read it.
    pub(super) is_encrypted: bool,
}

/// Bytes that do not begin a TLS connection, or not in a way that has one meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the begin of a TLS connection")]
pub(super) struct NotTls;

/// Reads the message at the begin of `bytes`; none when it is not whole yet.
///
/// # Errors
/// [`NotTls`], also when the message is over [`HELLO_BYTES_MAX`].
pub(super) fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, NotTls> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if let Some((head, body)) = message.split_first_chunk::<4>() {
            let len = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if head[0] != CLIENT_HELLO || len > HELLO_BYTES_MAX {
                return Err(NotTls);
            }
            if let Some(body) = body.get(..len) {
                return hello(body).map(Some).ok_or(NotTls);
            }
        }
        match rest.first() {
            None => return Ok(None),
            Some(&kind) if kind != HANDSHAKE => return Err(NotTls),
            Some(_) => {}
        }
        let Some((head, after)) = rest.split_first_chunk::<RECORD_HEAD>() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if head[1] != 3 || len == 0 || len > RECORD_MAX {
            return Err(NotTls);
        }
        let Some((fragment, next)) = after.split_at_checked(len) else {
            return Ok(None);
        };
        message.extend_from_slice(fragment);
        rest = next;
    }
}

fn hello(body: &[u8]) -> Option<ClientHello> {
    let mut fields = Fields(body);
    fields.take(2 + 32)?;
    let session = fields.short_list()?;
    let suites = fields.long_list()?;
    let compressions = fields.short_list()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    let mut found = ClientHello::default();
    if fields.0.is_empty() {
        return Some(found);
    }
    let mut extensions = Fields(fields.long_list()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.long_list()?;
        if kind == SERVER_NAME {
            // Twice would leave it to the server which of them counts.
            if found.server_name.replace(server_name(content)?).is_some() {
                return None;
            }
        }
        found.is_encrypted |= ENCRYPTED_CLIENT_HELLO.contains(&kind);
    }
    fields.0.is_empty().then_some(found)
}

/// One name, and nothing else.
fn server_name(content: &[u8]) -> Option<String> {
    let mut outer = Fields(content);
    let mut list = Fields(outer.long_list()?);
    let is_host = list.take(1)? == [0];
    let name = list.long_list()?;
    let is_all = outer.0.is_empty() && list.0.is_empty();
    (is_host && is_all && name.is_ascii()).then(|| String::from_utf8_lossy(name).into_owned())
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn short_list(&mut self) -> Option<&'a [u8]> {
        let len = *self.take(1)?.first()?;
        self.take(usize::from(len))
    }

    fn long_list(&mut self) -> Option<&'a [u8]> {
        let len = self.number()?;
        self.take(usize::from(len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(content: &[u8]) -> Vec<u8> {
        let len = u16::try_from(content.len()).unwrap();
        [&len.to_be_bytes(), content].concat()
    }

    fn name(host: &str) -> Vec<u8> {
        let entry = [&[0][..], &list(host.as_bytes())].concat();
        [&SERVER_NAME.to_be_bytes()[..], &list(&list(&entry))].concat()
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &[0],
            &list(&[0x13, 1]),
            &[1, 0],
            &list(extensions),
        ]
        .concat();
        let len = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO][..], &len[1..], &body].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &list(part)].concat();
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn the_name_is_found_however_the_message_is_cut() {
        let other = [&[0, 10][..], &list(&[0, 2, 0, 29])].concat();
        let message = message(&[other, name("a.example.org")].concat());
        let expected = ClientHello {
            server_name: Some("a.example.org".to_owned()),
            is_encrypted: false,
        };
        for size in [1, 3, 50, 1000] {
            let wire = records(&message, size);
            for len in 0..wire.len() {
                assert_eq!(parse(&wire[..len]), Ok(None), "{size} {len}");
            }
            assert_eq!(parse(&wire), Ok(Some(expected.clone())));
            // What follows it is not its own.
            assert_eq!(parse(&[&wire[..], b"GET"].concat()), Ok(Some(expected.clone())));
        }
    }

    #[test]
    fn a_message_without_a_name_says_so() {
        assert_eq!(parse(&records(&message(&[]), 1000)), Ok(Some(ClientHello::default())));
    }

    #[test]
    fn an_encrypted_one_is_told() {
        for kind in ENCRYPTED_CLIENT_HELLO {
            let ech = [&kind.to_be_bytes()[..], &list(&[0; 9])].concat();
            let hello = parse(&records(&message(&[name("a.org"), ech].concat()), 1000));
            assert!(hello.unwrap().unwrap().is_encrypted);
        }
    }

    #[test]
    fn what_has_two_meanings_or_none_is_refused() {
        let two = [name("a.org"), name("b.org")].concat();
        let entries = [&[0][..], &list(b"a.org"), &[0], &list(b"b.org")].concat();
        let two_in_one = [&[0, 0][..], &list(&list(&entries))].concat();
        let mut long = message(&name("a.org"));
        long[1] = 1;
        for wire in [
            records(&message(&two), 1000),
            records(&message(&two_in_one), 1000),
            records(&message(&name("\u{e4}")), 1000),
            records(&message(&[0, 0, 0]), 1000),
            records(&long, 1000),
            records(&[2, 0, 0, 0], 1000),
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"SSH-2.0-x\r\n".to_vec(),
            vec![HANDSHAKE, 2, 0, 0, 1],
            vec![HANDSHAKE, 3, 1, 0, 0],
            vec![HANDSHAKE, 3, 1, 0xff, 0xff],
        ] {
            assert_eq!(parse(&wire), Err(NotTls), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), inside in any::<bool>()) {
            let wire = if inside { records(&message(&bytes), 40) } else { bytes };
            drop(parse(&wire));
        }
    }
}
