//! Where a sandbox may connect to: hosts, rules and lists of them. Pure.
//!
//! A connection is allowed when every list that applies names it; an empty list names nothing, and a list with a rule
//! that cannot be read is no list at all.
//!
//! # Not here
//! Which addresses a name may stand for, and everything that connects, is the worker's `egress`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::job::exec::or_default;

/// The ports of a rule that names none.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// Most rules of one list.
pub const RULES_MAX: usize = 100;

/// Where a job's sandbox may connect to, if the operator's list allows it too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Egress {
    /// Hosts, such as `docs.example.com:443` or `*.example.org`.
    #[serde(default, deserialize_with = "or_default")]
    pub allow: Vec<String>,
}

impl Egress {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }
}

/// A host as a program names it: in lower case, without the dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name, to be resolved.
    Name(String),
    /// An address, as it is. An IPv4 address inside an IPv6 one is the IPv4 address.
    Address(IpAddr),
}

impl Host {
    /// Reads the host of an authority; IPv6 stands in brackets. `None` for what is neither a name nor an address in its
    /// usual form: `0x7f.1` and `2130706433` are addresses to some programs and names to others, so they are nothing.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Address(IpAddr::V4(address)));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        is_name(&name).then_some(Self::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port, not 0.
    pub port: u16,
}

impl Destination {
    /// Reads `host:port`, or `host` with a port that is known otherwise.
    pub fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = split_port(text)?;
        let port = port.or(default_port).filter(|port| *port > 0)?;
        Some(Self {
            host: Host::parse(host)?,
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One line of a list: `host`, `host:port`, `*.host` or `*.host:port`. `*.` stands for one label or more; a host may be
/// an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pattern: Pattern,
    // None: the default ports.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exactly(Host),
    // With its dot: ".example.org".
    Below(String),
}

/// A text that is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not host, host:port, *.host or *.host:port")]
pub struct NotARule(pub String);

impl FromStr for Rule {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        let parse = || {
            let (host, port) = split_port(text)?;
            let pattern = match host.strip_prefix("*.") {
                None => Pattern::Exactly(Host::parse(host)?),
                Some(parent) => match Host::parse(parent)? {
                    Host::Name(name) => Pattern::Below(format!(".{name}")),
                    Host::Address(_) => return None,
                },
            };
            (port != Some(0)).then_some(Self { pattern, port })
        };
        parse().ok_or_else(|| NotARule(text.to_owned()))
    }
}

impl Rule {
    /// Whether it names this destination.
    pub fn names(&self, destination: &Destination) -> bool {
        let has_port = match self.port {
            Some(port) => destination.port == port,
            None => DEFAULT_PORTS.contains(&destination.port),
        };
        has_port
            && match (&self.pattern, &destination.host) {
                (Pattern::Exactly(host), asked) => host == asked,
                (Pattern::Below(parent), Host::Name(name)) => name.len() > parent.len() && name.ends_with(parent),
                (Pattern::Below(_), Host::Address(_)) => false,
            }
    }
}

/// A list of rules. The empty one names nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(Vec<Rule>);

impl List {
    /// Reads every rule.
    ///
    /// # Errors
    /// The first that is none: half a list would be another list.
    pub fn parse<S: AsRef<str>>(rules: &[S]) -> Result<Self, NotARule> {
        rules
            .iter()
            .map(|rule| rule.as_ref().parse())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether a rule names this destination.
    pub fn names(&self, destination: &Destination) -> bool {
        self.0.iter().any(|rule| rule.names(destination))
    }
}

/// Splits the port off; a colon inside brackets belongs to the address.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let is_port = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    match text.rsplit_once(':') {
        Some((_, rest)) if rest.ends_with(']') => Some((text, None)),
        Some((host, port)) if is_port(port) => Some((host, Some(port.parse().ok()?))),
        Some(_) => None,
        None => Some((text, None)),
    }
}

/// A name of the DNS, in lower case. The last label is no number: resolvers take such names for addresses.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    let is_number = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_digit())
            || label
                .strip_prefix("0x")
                .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    name.len() <= 253 && name.split('.').all(is_label) && !name.rsplit('.').next().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Destination {
        Destination::parse(text, None).unwrap()
    }

    #[rstest::rstest]
    #[case::exact("example.org", "example.org:443", true)]
    #[case::plain_http("example.org", "example.org:80", true)]
    #[case::other_port("example.org", "example.org:8443", false)]
    #[case::port("example.org:8443", "example.org:8443", true)]
    #[case::port_alone("example.org:8443", "example.org:443", false)]
    #[case::case_of_rule("EXAMPLE.org", "example.ORG:443", true)]
    #[case::dot_at_the_end("example.org", "example.org.:443", true)]
    #[case::dot_in_the_rule("example.org.", "example.org:443", true)]
    #[case::below("*.example.org", "a.example.org:443", true)]
    #[case::far_below("*.example.org", "a.b.example.org:80", true)]
    #[case::not_itself("*.example.org", "example.org:443", false)]
    #[case::not_a_suffix("*.example.org", "badexample.org:443", false)]
    #[case::not_above("*.a.example.org", "example.org:443", false)]
    #[case::below_with_port("*.example.org:8080", "a.example.org:8080", true)]
    #[case::prefix("example.org", "example.org.evil.net:443", false)]
    #[case::subdomain("example.org", "a.example.org:443", false)]
    #[case::address("192.0.2.7:8080", "192.0.2.7:8080", true)]
    #[case::other_address("192.0.2.7", "192.0.2.8:443", false)]
    #[case::address_is_no_name("*.0.2.7x", "192.0.2.7:443", false)]
    #[case::six("[2001:db8::1]:443", "[2001:DB8:0::1]:443", true)]
    #[case::six_without_port("[2001:db8::1]", "[2001:db8::1]:80", true)]
    #[case::mapped("192.0.2.7", "[::ffff:192.0.2.7]:443", true)]
    fn a_rule_names(#[case] rule: &str, #[case] asked: &str, #[case] expected: bool) {
        assert_eq!(rule.parse::<Rule>().unwrap().names(&to(asked)), expected);
    }

    #[rstest::rstest]
    fn what_is_no_rule_is_refused(
        #[values(
            "",
            "*",
            "*:443",
            "*.",
            "**.a",
            "a.*.b",
            "a*",
            "http://a",
            "a/b",
            "a:0",
            "a:65536",
            "a:",
            "a:x",
            ":443",
            "a b",
            "a..b",
            "[::1",
            "::1",
            "[::1]x",
            "*.[::1]",
            "*.10.0.0.1",
            "a:1:2",
            "u@a",
            "0x7f.1",
            "2130706433",
            "127.1",
            "1.2.3.4.5",
            "\u{e4}.org",
            "a\r\nb",
            "[fe80::1%1]",
            "+1.2.3.4"
        )]
        text: &str,
    ) {
        assert_eq!(text.parse::<Rule>(), Err(NotARule(text.to_owned())));
    }

    #[test]
    fn a_list_with_one_bad_rule_is_none_and_an_empty_one_names_nothing() {
        assert_eq!(List::parse(&["a.org", "*"]), Err(NotARule("*".to_owned())));
        assert!(!List::parse::<&str>(&[]).unwrap().names(&to("a.org:443")));
        assert!(!List::default().names(&to("a.org:443")));
    }

    #[test]
    fn a_destination_reads_back_as_it_is_shown() {
        for text in ["a.org:443", "192.0.2.1:80", "[2001:db8::1]:8443"] {
            assert_eq!(to(text).to_string(), text);
        }
        assert_eq!(Destination::parse("a.org", Some(80)).unwrap().port, 80);
        assert_eq!(Destination::parse("a.org", None), None);
        assert_eq!(Destination::parse("a.org:0", Some(80)), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}") {
            drop((text.parse::<Rule>(), Destination::parse(&text, Some(1))));
        }
    }
}
