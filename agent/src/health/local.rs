//! Connections to our own application, over sockets that are never captured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use mesh_core::health::LOCALHOST;
use tokio::net::TcpStream;

use crate::shared::Shared;
use crate::socket;

/// Connects to `host`, which is the loopback unless it names an address of our own. A probe is no way to reach others
/// through us, whoever wrote it.
pub(super) async fn connect(shared: &Shared, host: &str, port: u32) -> anyhow::Result<TcpStream> {
    let port = u16::try_from(port).context("the probe's port")?;
    let mut last = None;
    for address in addresses(host, &shared.own_addresses(&shared.world()))? {
        let peer = SocketAddr::new(address, port);
        match socket::connect(peer, shared.config.capture.mark, LONGEST).await {
            Ok(stream) => return Ok(stream),
            // The first answer is that of the family which is usually served.
            Err(error) => last = last.or(Some((peer, error))),
        }
    }
    match last {
        Some((peer, error)) => bail!("connecting to {peer}: {error}"),
        None => bail!("the probe's host {host:?} has no address"),
    }
}

fn addresses(host: &str, own: &[IpAddr]) -> anyhow::Result<Vec<IpAddr>> {
    if host.is_empty() || host == LOCALHOST {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let address: IpAddr = host.parse().context("the probe's host is not an address")?;
    if !address.is_loopback() && !own.iter().any(|own| own.to_canonical() == address.to_canonical()) {
        bail!(
            "the probe's host {address} is not an address of this machine; leave host out, or name the machine's own"
        );
    }
    Ok(vec![address])
}

/// The probe's own timeout is shorter, as a rule.
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_probed() {
        let own = ["10.0.0.1".parse().unwrap()];
        for (host, count) in [("", 2), ("localhost", 2), ("127.0.0.1", 1), ("::1", 1), ("10.0.0.1", 1)] {
            assert_eq!(addresses(host, &own).unwrap().len(), count, "{host}");
        }
        for host in ["10.0.0.2", "169.254.169.254", "example.com"] {
            assert!(addresses(host, &own).is_err(), "{host}");
        }
    }
}
