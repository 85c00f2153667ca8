//! Whose address an application sees as its peer: the caller's own, wherever packets in its name reach the application, and
//! only this machine could send what answers them.

use std::net::{IpAddr, SocketAddr};

use super::{is_remote, link_local};
use crate::world::{Workload, World};

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Where its tunnel comes from.
    pub address: IpAddr,
    /// The `x-forwarded-network` header of an inner CONNECT.
    pub forwarded_network: Option<&'a str>,
}

/// Why the application sees this machine's own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPreserved {
    #[error("delivery is to loopback, where no other address belongs")]
    Loopback,
    #[error("the caller is in another network, and its address means something else here")]
    RemoteNetwork,
    #[error("the caller's address is not of the application's family")]
    Family,
    #[error("the caller is this machine")]
    OwnAddress,
    #[error("the caller's address is not captured here, so that answers to it would go in plain if the agent died")]
    NotCaptured,
}

/// The address that the application at `to` may be shown as its peer.
pub fn preserved(
    world: &World,
    own: &Workload,
    network: &str,
    caller: Caller<'_>,
    to: SocketAddr,
) -> Result<IpAddr, NotPreserved> {
    let address = caller.address.to_canonical();
    let application = to.ip().to_canonical();
    // An application tunnel delivers there, and tells the caller by its own header.
    if application.is_loopback() {
        return Err(NotPreserved::Loopback);
    }
    if is_remote(caller.forwarded_network, network) {
        return Err(NotPreserved::RemoteNetwork);
    }
    if address.is_ipv4() != application.is_ipv4() {
        return Err(NotPreserved::Family);
    }
    // The kernel takes no packet from outside that has its own source.
    if address == application || own.addresses.iter().any(|own| own.to_canonical() == address) {
        return Err(NotPreserved::OwnAddress);
    }
    if link_local(address) || !world.captures(network, address) {
        return Err(NotPreserved::NotCaptured);
    }
    Ok(address)
}
