//! From a destination to a connection: one resolution, every address checked, and only a checked one dialled.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::egress::{Destination, Host};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Settings;
use super::address::is_reachable;
use super::refusal::Refusal;

/// A name with more addresses has the rest ignored.
const ADDRESSES_MAX: usize = 4;

/// The system's resolver takes a thread for each question, also for one that nobody waits for any more.
static QUESTIONS: Semaphore = Semaphore::const_new(16);

/// Connects, and says to which address.
///
/// # Errors
/// [`Refusal::NoAddress`], [`Refusal::PrivateAddress`] when one of the addresses may not be reached,
/// [`Refusal::Unreachable`].
pub(super) async fn dial(destination: &Destination, settings: &Settings) -> Result<(TcpStream, IpAddr), Refusal> {
    let found = timeout(settings.connect_timeout, resolve(destination, settings)).await;
    let addresses = found.map_err(|_elapsed| Refusal::NoAddress)??;
    check(&addresses, settings)?;
    let patience = settings.connect_timeout / u32::try_from(addresses.len()).unwrap_or(1).max(1);
    for address in addresses {
        if let Some(stream) = connect(SocketAddr::new(address, destination.port), patience).await {
            return Ok((stream, address));
        }
    }
    Err(Refusal::Unreachable)
}

async fn connect(address: SocketAddr, patience: Duration) -> Option<TcpStream> {
    let stream = timeout(patience, TcpStream::connect(address)).await.ok()?.ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

/// The addresses of a destination, as they are given; the caller checks them.
async fn resolve(destination: &Destination, settings: &Settings) -> Result<Vec<IpAddr>, Refusal> {
    let name = match &destination.host {
        Host::Address(address) => return Ok(vec![*address]),
        Host::Name(name) => name,
    };
    if let Some(fixed) = settings.hosts.get(name) {
        return Ok(fixed.clone());
    }
    let _place = QUESTIONS.acquire().await.map_err(|_closed| Refusal::NoAddress)?;
    let found = lookup_host((name.as_str(), destination.port)).await;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map_err(|_error| Refusal::NoAddress)? {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    addresses.truncate(ADDRESSES_MAX);
    Ok(addresses)
}

/// One address that may not be reached is reason enough: whoever gives it wants something that we do not.
fn check(addresses: &[IpAddr], settings: &Settings) -> Result<(), Refusal> {
    if addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    if !addresses
        .iter()
        .all(|address| is_reachable(*address, &settings.private))
    {
        return Err(Refusal::PrivateAddress);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(addresses: &[&str]) -> Settings {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Settings {
            hosts: [("a.test".to_owned(), addresses)].into(),
            connect_timeout: Duration::from_millis(200),
            ..Settings::default()
        }
    }

    async fn refused(destination: &str, settings: &Settings) -> Option<Refusal> {
        let destination = Destination::parse(destination, None).unwrap();
        dial(&destination, settings).await.err()
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_refused_however_it_is_written() {
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "::ffff:127.0.0.1",
            "::1",
            "169.254.169.254",
            "2002:7f00:1::",
        ] {
            assert_eq!(
                refused("a.test:80", &settings(&[address])).await,
                Some(Refusal::PrivateAddress)
            );
        }
        assert_eq!(
            refused("127.0.0.1:80", &settings(&[])).await,
            Some(Refusal::PrivateAddress)
        );
        assert_eq!(refused("[::1]:80", &settings(&[])).await, Some(Refusal::PrivateAddress));
    }

    #[tokio::test]
    async fn one_private_address_among_public_ones_is_enough() {
        let mixed = settings(&["8.8.8.8", "192.168.0.1"]);
        assert_eq!(refused("a.test:80", &mixed).await, Some(Refusal::PrivateAddress));
    }

    #[tokio::test]
    async fn the_system_s_own_names_are_checked_too() {
        assert_eq!(
            refused("localhost:80", &settings(&[])).await,
            Some(Refusal::PrivateAddress)
        );
    }

    #[tokio::test]
    async fn a_name_without_addresses_is_nothing() {
        assert_eq!(refused("a.test:80", &settings(&[])).await, Some(Refusal::NoAddress));
        assert_eq!(refused("b.invalid:80", &settings(&[])).await, Some(Refusal::NoAddress));
    }

    #[tokio::test]
    async fn an_allowed_address_is_dialled_and_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings = Settings {
            private: vec!["127.0.0.0/8".parse().unwrap()],
            ..settings(&["127.0.0.2", "127.0.0.1"])
        };
        // The first of them does not answer.
        let destination = Destination::parse(&format!("a.test:{port}"), None).unwrap();
        let (stream, address) = dial(&destination, &settings).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().ip(), address);
        assert_eq!(address.to_string(), "127.0.0.1");
    }
}
