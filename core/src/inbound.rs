//! What is to be done with a CONNECT that a peer sent us (docs/architecture.md).
//!
//! Only an address of our own workload is a target, and never a port of the agent itself: otherwise any member could reach
//! loopback services, link-local metadata, neighbours or the agent through us.

use std::net::{IpAddr, SocketAddr};

use crate::world::{ServiceKey, Workload, World};

/// Why a CONNECT target is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetRefusal {
    #[error("the authority {0:?} is not ADDRESS:PORT")]
    Unparsable(String),
    #[error("{0} is not an address of this workload")]
    NotOurAddress(SocketAddr),
    #[error("port {0} is one of the agent's own")]
    OwnPort(u16),
}

/// How much of an authority is repeated in an error.
const SHOWN: usize = 128;

/// Where a CONNECT is delivered.
pub fn target(authority: &str, own: &Workload, own_ports: &[u16]) -> Result<SocketAddr, TargetRefusal> {
    let unparsable = || TargetRefusal::Unparsable(authority.chars().take(SHOWN).collect());
    // A zone ("fe80::1%eth0") would be lost silently below, and names another machine's interface anyway.
    if authority.contains('%') {
        return Err(unparsable());
    }
    let parsed: SocketAddr = authority.parse().map_err(|_| unparsable())?;
    let target = SocketAddr::new(parsed.ip().to_canonical(), parsed.port());
    if target.port() == 0 {
        return Err(unparsable());
    }
    if !own.addresses.iter().any(|own| own.to_canonical() == target.ip()) || never_delivered(target.ip()) {
        return Err(TargetRefusal::NotOurAddress(target));
    }
    if own_ports.contains(&target.port()) {
        return Err(TargetRefusal::OwnPort(target.port()));
    }
    Ok(target)
}

/// Which of our services the caller meant, for telemetry (as ztunnel does it): the one that its `forwarded` header names, else
/// one that is served on this port.
pub fn service_meant<'a>(
    world: &World,
    own: &'a Workload,
    port: u16,
    forwarded: Option<&str>,
) -> Option<&'a ServiceKey> {
    let host = forwarded.and_then(forwarded_host);
    let named = |key: &&ServiceKey| host.is_some_and(|host| key.hostname.eq_ignore_ascii_case(host));
    let mut keys = own.services.iter().map(|(key, _)| key);
    if let Some(key) = keys.find(named) {
        return Some(key);
    }
    let served = |(key, ports): &&(ServiceKey, Vec<crate::world::Port>)| {
        let listed = world.service(key).map_or(&[][..], |service| &service.ports);
        ports.iter().chain(listed).any(|listed| listed.target_port == port)
    };
    own.services.iter().find(served).map(|(key, _)| key)
}

/// The `host` of the first element (RFC 7239 section 4), without its quotes.
fn forwarded_host(header: &str) -> Option<&str> {
    let first = header.split(',').next()?;
    let mut pairs = first.split(';').filter_map(|pair| pair.split_once('='));
    let (_, host) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("host"))?;
    Some(host.trim().trim_matches('"'))
}

/// Even a record that claims such an address does not open it.
fn never_delivered(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local(address)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::fixture;

    const OWN_PORTS: [u16; 5] = [15008, 15020, 15021, 15080, 53];

    fn own() -> Workload {
        let mut own = fixture::workload("us", "10.0.0.1");
        own.addresses.push("fd00::1".parse().unwrap());
        own
    }

    #[test]
    fn our_addresses_are_delivered() {
        for (authority, expected) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ] {
            assert_eq!(
                target(authority, &own(), &OWN_PORTS).unwrap(),
                expected.parse().unwrap()
            );
        }
    }

    #[test]
    fn nothing_else_is() {
        for authority in [
            "127.0.0.1:80",
            "169.254.169.254:80",
            "10.0.0.2:80",
            "[::1]:80",
            "0.0.0.0:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            let refused = target(authority, &own(), &OWN_PORTS);
            assert!(
                matches!(refused, Err(TargetRefusal::NotOurAddress(_))),
                "{authority}: {refused:?}"
            );
        }
        for port in OWN_PORTS {
            assert_eq!(
                target(&format!("10.0.0.1:{port}"), &own(), &OWN_PORTS),
                Err(TargetRefusal::OwnPort(port))
            );
        }
        for authority in [
            "",
            "10.0.0.1",
            "10.0.0.1:0",
            "10.0.0.1:99999",
            "orders:80",
            "fd00::1:80",
            "[fd00::1%1]:80",
            "u@10.0.0.1:80",
        ] {
            let refused = target(authority, &own(), &OWN_PORTS);
            assert!(
                matches!(refused, Err(TargetRefusal::Unparsable(_))),
                "{authority}: {refused:?}"
            );
        }
    }

    #[test]
    fn the_service_that_was_meant_is_found() {
        let (mut one, mut two) = (
            fixture::service("one.shop", "240.240.0.1"),
            fixture::service("two.shop", "240.240.0.2"),
        );
        (one.ports[0].target_port, two.ports[0].target_port) = (8080, 9090);
        let mut own = own();
        own.services = vec![(one.key.clone(), vec![]), (two.key.clone(), vec![])];
        let world = World::default().apply(crate::world::Delta {
            services: vec![one.clone(), two.clone()],
            ..crate::world::Delta::default()
        });
        let meant = |port, forwarded| service_meant(&world, &own, port, forwarded);
        assert_eq!(meant(8080, None), Some(&one.key));
        assert_eq!(meant(9090, Some("for=\"10.0.0.1:2\"")), Some(&two.key));
        assert_eq!(meant(9090, Some("for=\"10.0.0.1:2\";host=ONE.shop")), Some(&one.key));
        assert_eq!(meant(9090, Some("Host=\"one.shop\", host=two.shop")), Some(&one.key));
        // A name that is not ours says nothing.
        assert_eq!(meant(9090, Some("host=elsewhere")), Some(&two.key));
        assert_eq!(meant(1, Some("=;host")), None);
    }

    #[test]
    fn a_record_cannot_open_loopback() {
        let own = fixture::workload("us", "127.0.0.1");
        assert!(target("127.0.0.1:80", &own, &OWN_PORTS).is_err());
    }
}
