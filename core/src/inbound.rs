//! What is to be done with a CONNECT that a peer sent us: which local address it may name.

use std::net::SocketAddr;

use crate::world::Workload;

/// Why a CONNECT target is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetRefusal {
    #[error("the authority {0:?} is not ADDRESS:PORT")]
    Unparsable(String),
    #[error("ip mismatch: {0} is not an address of this workload")]
    NotOurAddress(SocketAddr),
    #[error("port {0} is one of the agent's own")]
    OwnPort(u16),
}

/// Where a CONNECT is delivered: an address of our own record (any of them: 1:1 NAT exists), and none of our own ports.
pub fn target(authority: &str, own: &Workload, own_ports: &[u16]) -> Result<SocketAddr, TargetRefusal> {
    let parsed: Result<SocketAddr, _> = authority.parse();
    let target = parsed.map_err(|_| TargetRefusal::Unparsable(authority.chars().take(256).collect()))?;
    let target = SocketAddr::new(target.ip().to_canonical(), target.port());
    if !own.addresses.contains(&target.ip()) {
        return Err(TargetRefusal::NotOurAddress(target));
    }
    if target.port() == 0 || own_ports.contains(&target.port()) {
        return Err(TargetRefusal::OwnPort(target.port()));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::workload;

    #[test]
    fn only_our_addresses_and_other_ports() {
        let own = workload("own", "10.0.0.5");
        assert_eq!(
            target("10.0.0.5:80", &own, &[15008]),
            Ok("10.0.0.5:80".parse().unwrap())
        );
        assert_eq!(
            target("[::ffff:10.0.0.5]:80", &own, &[]),
            Ok("10.0.0.5:80".parse().unwrap())
        );
        assert_eq!(
            target("10.0.0.5:15008", &own, &[15008]),
            Err(TargetRefusal::OwnPort(15008))
        );
        for foreign in [
            "127.0.0.1:80",
            "169.254.169.254:80",
            "10.0.0.6:80",
            "[::1]:80",
            "[fe80::1]:80",
            "0.0.0.0:80",
        ] {
            assert!(
                matches!(target(foreign, &own, &[]), Err(TargetRefusal::NotOurAddress(_))),
                "{foreign}"
            );
        }
        for garbage in [
            "",
            "orders:80",
            "10.0.0.5",
            "10.0.0.5:",
            "10.0.0.5:99999",
            "http://10.0.0.5:80",
        ] {
            assert!(
                matches!(target(garbage, &own, &[]), Err(TargetRefusal::Unparsable(_))),
                "{garbage}"
            );
        }
    }
}
