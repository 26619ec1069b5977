//! Whether anything happened over TCP, and whether there are sockets of other protocols.
//!
//! The kernel's list of connections is made by walking a table that all network namespaces of the machine share: some
//! milliseconds for each look, where there is much memory. Its counters belong to the namespace and cost next to nothing:
//! a connection, also one that was refused, sent a segment, and one that is there is counted. While they stand where they
//! stood, there is none that was not there before. What they say of UDP and raw sockets, which leave nothing behind when
//! they are closed, needs no comparison.

use std::fs;

/// The counters at one moment, as the kernel writes them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// What was opened, received and sent so far.
    segments: String,
    /// Sockets of both families, and connections that wait for their end.
    sockets: [String; 3],
    /// Whether it is certain that there is no socket of the other protocols that have a table.
    pub(crate) has_no_others: bool,
}

/// The protocols besides, as the kernel names them; each counts the same sockets that are in its table.
const OTHERS: [[&str; 3]; 2] = [["UDP:", "UDPLITE:", "RAW:"], ["UDP6:", "UDPLITE6:", "RAW6:"]];

impl Counted {
    /// Those of now; none where they cannot be read.
    pub(crate) fn now() -> Option<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}")).ok();
        let (all, four, six) = (read("snmp")?, read("sockstat")?, read("sockstat6").unwrap_or_default());
        let counts_none = |text: &str, lines: [&str; 3]| {
            let mut counts = lines.into_iter().map(|line| value(text, line, "inuse"));
            counts.all(|count| count == Some("0"))
        };
        let [others, others_six] = OTHERS;
        Some(Self {
            segments: segments(&all)?.to_owned(),
            has_no_others: counts_none(&four, others) && counts_none(&six, others_six),
            sockets: [
                value(&four, "TCP:", "inuse")?.to_owned(),
                value(&four, "TCP:", "tw")?.to_owned(),
                // Nothing of the kind where there is no such family.
                value(&six, "TCP6:", "inuse").unwrap_or_default().to_owned(),
            ],
        })
    }
}

/// The line of values, which follows that of names. Without the counts of segments it says nothing.
fn segments(text: &str) -> Option<&str> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let is_counted = |name: &str| names.split_whitespace().any(|it| it == name);
    ["ActiveOpens", "PassiveOpens", "InSegs", "OutSegs"]
        .into_iter()
        .all(is_counted)
        .then_some(values)
}

/// The value that follows a name, in the line that begins so.
fn value<'a>(text: &'a str, line: &str, name: &str) -> Option<&'a str> {
    let mut words = text.lines().find_map(|it| it.strip_prefix(line))?.split_whitespace();
    words.find(|word| *word == name)?;
    words.next()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_values_follow_the_names() {
        let text =
            "Ip: A\nIp: 1\nTcp: ActiveOpens PassiveOpens InSegs OutSegs\nTcp: 1 2 3 4\nUdp: InDatagrams\nUdp: 9\n";
        assert_eq!(segments(text), Some(" 1 2 3 4"));
        assert_eq!(segments("Tcp: ActiveOpens PassiveOpens InSegs OutSegs\n"), None);
        assert_eq!(segments("Tcp: CurrEstab\nTcp: 0\n"), None);
    }

    #[test]
    fn a_value_follows_its_name() {
        let text = "sockets: used 9\nTCP: inuse 2 orphan 0 tw 7 alloc 3 mem 0\nUDP: inuse 5 mem 1\n";
        assert_eq!(
            (value(text, "TCP:", "inuse"), value(text, "TCP:", "tw")),
            (Some("2"), Some("7"))
        );
        assert_eq!((value(text, "TCP6:", "inuse"), value(text, "TCP:", "no")), (None, None));
    }

    #[test]
    fn a_socket_of_another_protocol_is_counted() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!Counted::now().unwrap().has_no_others);
        drop(socket);
    }

    #[test]
    fn a_connection_and_one_that_is_refused_move_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let before = Counted::now().unwrap();
        drop(TcpStream::connect(address).unwrap());
        let after = Counted::now().unwrap();
        assert_ne!(after, before);
        drop(listener);
        assert!(TcpStream::connect(address).is_err());
        assert_ne!(Counted::now().unwrap(), after);
    }
}
