//! Ports of the loopback address.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, bail};

/// Whether nobody listens on a port of the loopback address. Somebody may a moment later.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The preferred port when it is free, else any free one.
///
/// # Errors
/// When the machine has no free port.
pub(crate) fn free(preferred: Option<u16>) -> anyhow::Result<u16> {
    if let Some(port) = preferred.filter(|port| is_free(*port)) {
        return Ok(port);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("there is no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Refuses an address that the API could not listen on, before anything else is started.
///
/// # Errors
/// A sentence that says what to do.
pub(crate) fn check(address: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "{address} is in use by another program: stop that, or choose another address with --listen {}:{}",
            address.ip(),
            address.port().checked_add(1).unwrap_or(8080)
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!(
                "ports below 1024 are for root: choose another with --listen {}:8080",
                address.ip()
            )
        }
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            bail!(
                "this machine has no address {}: choose another with --listen",
                address.ip()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_not_free_and_another_is_found() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = taken.local_addr().unwrap();

        let other = free(Some(address.port())).unwrap();
        let refused = check(address).unwrap_err().to_string();

        assert_ne!(other, address.port());
        assert!(
            refused.contains("in use by another program: stop that, or"),
            "{refused}"
        );
    }
}
