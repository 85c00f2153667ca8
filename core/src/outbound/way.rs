//! What routing answers with: ways, hops, candidates, and why there is none.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::identity::Identity;
use crate::world::{Service, Workload};

/// Where somebody is: an address, or a name that the agent resolves before it dials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Address(SocketAddr),
    Name { host: Arc<str>, port: u16 },
}

/// What a CONNECT asks for: `10.0.0.1:8080`, `[fd00::1]:80` or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority(String);

/// Whether a peer may speak HBONE/3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quic {
    /// The world says so.
    Marked,
    /// A machine of which nothing is known.
    Unknown,
    /// Pods, ztunnels, waypoints, gateways.
    No,
}

/// Whom to dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    /// Its HBONE port.
    pub address: Target,
    /// Of which its certificate must show one. Never empty.
    pub identities: Vec<Identity>,
    pub quic: Quic,
}

/// How a destination is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A tunnel to `hop`, and in it a CONNECT for `authority`.
    Tunnel { hop: Hop, authority: Authority },
    /// A tunnel to the gateway of another network, and in it one to whomever the gateway picks, who must show one of
    /// `identities`. Both CONNECTs ask for `authority`, the service by name.
    Double {
        gateway: Hop,
        authority: Authority,
        identities: Vec<Identity>,
    },
    /// Plain TCP.
    Plain,
}

/// One way to reach a destination.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who is dialled: the endpoint, or the waypoint or gateway before it.
    pub workload: Option<Arc<Workload>>,
    /// Where the application of the far side listens; behind a waypoint or gateway, what our application asked for.
    pub target: Target,
    pub way: Way,
    /// Whether a waypoint stands between, which then decides by its own policies.
    pub via_waypoint: bool,
}

/// What was decided.
#[derive(Clone, Debug)]
pub enum Route {
    /// Try these in order, each at most once.
    Endpoints {
        service: Option<Arc<Service>>,
        candidates: Vec<Candidate>,
    },
    /// Not possible, and why.
    Fail(RouteFailure),
}

/// Why there is no way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteFailure {
    #[error("no healthy upstream: {0}: see which of its endpoints are healthy and near enough for its load balancing")]
    NoHealthyUpstream(String),
    #[error("the service {0} has no port {1}")]
    NoSuchPort(String, u16),
    #[error(
        "unknown waypoint: {waypoint} of {destination} is not known, has no healthy endpoint or cannot be reached from \
         here: see that it is deployed and ready; a waypoint is never bypassed"
    )]
    UnknownWaypoint { destination: String, waypoint: String },
    #[error(
        "unknown network gateway: {destination} is in the network {network:?}, to which no usable gateway is known: see that this network has a \
         Gateway of class istio-east-west or istio-remote and that the service is global"
    )]
    NoGateway { destination: String, network: String },
    #[error("{0} is a port of this agent on the loopback: connect to the application's own port")]
    SelfCall(SocketAddr),
    #[error("nothing is known of {0} yet: the control plane was not heard since the start")]
    NotSettled(SocketAddr),
}

impl Target {
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Name { port, .. } => *port,
        }
    }

    /// Its address, where that is known.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name { .. } => None,
        }
    }

    /// The same with another port.
    pub(super) fn with_port(&self, port: u16) -> Self {
        match self {
            Self::Address(address) => Self::Address(SocketAddr::new(address.ip(), port)),
            Self::Name { host, .. } => Self::Name {
                host: Arc::clone(host),
                port,
            },
        }
    }

    fn resolve(&mut self, address: IpAddr) {
        if let Self::Name { port, .. } = self {
            *self = Self::Address(SocketAddr::new(address, *port));
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Authority {
    /// A service by name.
    pub(super) fn of_host(host: &str, port: u16) -> Self {
        Self(format!("{host}:{port}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Target> for Authority {
    fn from(target: &Target) -> Self {
        Self(target.to_string())
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Candidate {
    /// The name that is to be resolved before this can be dialled: give the address to [`Candidate::resolved`].
    pub fn unresolved(&self) -> Option<&str> {
        let dialled = match &self.way {
            Way::Tunnel { hop, .. } | Way::Double { gateway: hop, .. } => &hop.address,
            Way::Plain => &self.target,
        };
        match dialled {
            Target::Name { host, .. } => Some(host),
            Target::Address(_) => None,
        }
    }

    /// The same with the name's address in its place. A peer that is an endpoint itself is asked for its address, not for
    /// its name: it may not know how others call it.
    #[must_use]
    pub fn resolved(mut self, address: IpAddr) -> Self {
        self.target.resolve(address);
        match &mut self.way {
            Way::Tunnel { hop, authority } => {
                hop.address.resolve(address);
                if !self.via_waypoint {
                    *authority = Authority::from(&self.target);
                }
            }
            Way::Double { gateway, .. } => gateway.address.resolve(address),
            Way::Plain => {}
        }
        self
    }
}
