//! What is to be done with a CONNECT that a peer sent us (docs/architecture.md).
//!
//! Only an address of our own workload is a target, and never a port of the agent itself: otherwise any member could reach
//! loopback services, link-local metadata, neighbours or the agent through us. A workload whose record has an application
//! tunnel takes connections for others too (it is a waypoint); those all go to its one application.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::balance::target_port;
use crate::world::{Service, ServiceKey, Workload, World, preferred};

mod authority;
mod caller;

use authority::Authority;
pub use caller::{Caller, NotPreserved, preserved};

/// What a CONNECT says of where it is to go.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub authority: &'a str,
    /// The `forwarded` header, for telemetry alone.
    pub forwarded: Option<&'a str>,
    /// The address at which it arrived. A service by name is delivered at it where it is ours (it is not behind a 1:1 NAT).
    pub local: IpAddr,
}

/// Where a CONNECT is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Where to connect. The loopback where a PROXY header is sent: who believes such headers must not listen elsewhere.
    pub to: SocketAddr,
    /// What policies compare with: an address of ours, and the port that was resolved, before an application tunnel's.
    pub judged: SocketAddr,
    /// The destination that the PROXY header names; `None` where none is sent.
    pub proxy: Option<SocketAddr>,
    /// The service that the caller meant, for telemetry.
    pub service: Option<ServiceKey>,
}

/// Why a CONNECT target is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetRefusal {
    #[error("the authority {0:?} is neither ADDRESS:PORT nor HOST:PORT")]
    Unparsable(String),
    #[error("{0} is not an address of this workload")]
    NotOurAddress(SocketAddr),
    #[error("this workload is named as the waypoint of {0}, but its record has no application tunnel")]
    NotAWaypoint(String),
    #[error("port {0} is one of the agent's own")]
    OwnPort(u16),
    #[error("no service {0} is known that this workload serves")]
    NoSuchService(String),
    #[error("the service {0} has no port {1} on this workload")]
    NoServicePort(String, u16),
    #[error("the service {0} has no address for a PROXY header to name")]
    NoServiceAddress(String),
    #[error("this workload has no address of its own to deliver to")]
    NoOwnAddress,
}

impl TargetRefusal {
    /// The HTTP status that says so to the caller (as ztunnel has them).
    pub fn status(&self) -> u16 {
        match self {
            Self::Unparsable(_) | Self::NotOurAddress(_) | Self::NotAWaypoint(_) => 400,
            Self::OwnPort(_)
            | Self::NoSuchService(_)
            | Self::NoServicePort(..)
            | Self::NoServiceAddress(_)
            | Self::NoOwnAddress => 503,
        }
    }
}

/// Decides where a CONNECT goes.
pub fn deliver(world: &World, own: &Workload, asked: &Asked<'_>, own_ports: &[u16]) -> Result<Delivery, TargetRefusal> {
    let (judged, named, service) = match Authority::parse(asked.authority)? {
        Authority::Address(target) => {
            let judged = at_address(world, own, asked, target)?;
            let service = match judged == target {
                true => service_meant(world, own, target.port(), asked.forwarded),
                // We are a waypoint: what it was for is what the address stands for.
                false => world
                    .service_at(&own.network, target.ip(), &own.namespace)
                    .map(|of| &of.key),
            };
            (judged, Some(target), service.cloned())
        }
        Authority::Host(host, port) => {
            let service = service_of(world, own, &host)?;
            let target = target_port(service, own, port).ok_or(TargetRefusal::NoServicePort(host, port))?;
            let judged = SocketAddr::new(own_address(own, asked.local)?, target);
            let vip = proxied_address(service, &own.network).map(|vip| SocketAddr::new(vip, port));
            (judged, vip, Some(service.key.clone()))
        }
    };
    let (to, proxy) = match own.application_tunnel {
        None => (judged, None),
        Some(tunnel) => {
            let port = if tunnel.port == 0 { judged.port() } else { tunnel.port };
            if tunnel.proxy {
                let unnamed = || TargetRefusal::NoServiceAddress(asked.authority.to_owned());
                let named = named.ok_or_else(unnamed)?;
                (SocketAddr::new(loopback(judged.ip()), port), Some(named))
            } else {
                (SocketAddr::new(judged.ip(), port), None)
            }
        }
    };
    for port in [judged.port(), to.port()] {
        if own_ports.contains(&port) {
            return Err(TargetRefusal::OwnPort(port));
        }
    }
    Ok(Delivery {
        to,
        judged,
        proxy,
        service,
    })
}

/// Whether the source is in another network, by the `x-forwarded-network` header of an inner CONNECT. Its address then says
/// nothing in ours.
pub fn is_remote(forwarded_network: Option<&str>, own_network: &str) -> bool {
    forwarded_network.is_some_and(|network| !network.eq_ignore_ascii_case(own_network))
}

/// Any address of our record is ours (one may be the outside of a 1:1 NAT). Others are, where an application tunnel tells
/// the application which it was.
fn at_address(
    world: &World,
    own: &Workload,
    asked: &Asked<'_>,
    target: SocketAddr,
) -> Result<SocketAddr, TargetRefusal> {
    if own_addresses(own).any(|own| own == target.ip()) {
        return Ok(target);
    }
    if own.application_tunnel.is_some() {
        return Ok(SocketAddr::new(own_address(own, asked.local)?, target.port()));
    }
    let service = world.service_at(&own.network, target.ip(), &own.namespace);
    let workload = world.workload_at(&own.network, target.ip());
    let guarded = match (service, workload) {
        (Some(service), _) => guards(world, own, service),
        (None, Some(workload)) => {
            let waypoint = workload.waypoint.as_deref();
            waypoint.is_some_and(|waypoint| world.is_among(waypoint, own))
        }
        (None, None) => false,
    };
    Err(if guarded {
        TargetRefusal::NotAWaypoint(target.to_string())
    } else {
        TargetRefusal::NotOurAddress(target)
    })
}

/// The service of that name: one that we serve, of our own namespace first; with an application tunnel any other too.
fn service_of<'a>(world: &'a World, own: &Workload, host: &str) -> Result<&'a Arc<Service>, TargetRefusal> {
    let all = || world.services_by_hostname(host);
    let served = all().filter(|service| own.ports_of(&service.key).is_some());
    if let Some(service) = preferred(served, &own.namespace) {
        return Ok(service);
    }
    match preferred(all(), &own.namespace) {
        Some(service) if own.application_tunnel.is_some() => Ok(service),
        Some(service) if guards(world, own, service) => Err(TargetRefusal::NotAWaypoint(host.to_owned())),
        _ => Err(TargetRefusal::NoSuchService(host.to_owned())),
    }
}

/// Whether the service names us as its waypoint.
fn guards(world: &World, own: &Workload, service: &Service) -> bool {
    let weighted = service.weighted_waypoints.iter().map(|(waypoint, _)| waypoint);
    let mut waypoints = service.waypoint.iter().chain(weighted);
    waypoints.any(|waypoint| world.is_among(waypoint, own))
}

/// The VIP that stands for a name in a PROXY header: of our own network first, IPv4 first.
fn proxied_address(service: &Service, network: &str) -> Option<IpAddr> {
    let single = service
        .vips
        .iter()
        .filter(|(_, vip)| vip.prefix_len() == vip.max_prefix_len());
    let best = single.min_by_key(|(of, vip)| (&**of != network, !vip.addr().is_ipv4()));
    best.map(|(_, vip)| vip.addr())
}

/// Our address for what came by name: where it arrived, else one of that family.
fn own_address(own: &Workload, local: IpAddr) -> Result<IpAddr, TargetRefusal> {
    let local = local.to_canonical();
    let order = |address: &IpAddr| (*address != local, address.is_ipv4() != local.is_ipv4());
    own_addresses(own).min_by_key(order).ok_or(TargetRefusal::NoOwnAddress)
}

fn own_addresses(own: &Workload) -> impl Iterator<Item = IpAddr> {
    let canonical = own.addresses.iter().map(IpAddr::to_canonical);
    canonical.filter(|address| !never_delivered(*address))
}

fn loopback(family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Which of our services the caller meant, for telemetry (as ztunnel does it): the one that its `forwarded` header names, else
/// one that is served on this port.
fn service_meant<'a>(world: &World, own: &'a Workload, port: u16, forwarded: Option<&str>) -> Option<&'a ServiceKey> {
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
mod tests;
