//! Every setting, its default and its check.
//!
//! Layers: built-in defaults, `/etc/mesh-agent/agent.toml`, `/etc/mesh-agent/conf.d/*.toml`, then
//! `MESH_AGENT__SECTION__KEY` from the environment.

pub mod source;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use mesh_core::transport::Preference;
use serde::{Deserialize, Serialize};

use crate::dns::Lookup;

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub paths: Paths,
    pub capture: Capture,
    pub tunnel: Tunnel,
    pub inbound: Inbound,
    pub outbound: Outbound,
    pub udp: Udp,
    pub dns: Dns,
    pub health: Health,
    pub admin: Admin,
    pub log: Log,
}

impl Config {
    /// How names of our own are resolved.
    pub fn lookup(&self) -> Lookup {
        Lookup {
            dns: self.dns.clone(),
            mark: self.capture.mark,
        }
    }
}

/// Where files are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Paths {
    /// Identity, certificates, the last good world.
    pub state: PathBuf,
    /// The admin socket.
    pub run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/mesh-agent".into(),
            run: "/run/mesh-agent".into(),
        }
    }
}

/// What happens to captured prefixes when the agent dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// They are unreachable until the agent is back.
    Closed,
    /// They are reached in plain.
    Open,
}

/// Taking packets from the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capture {
    pub tun: String,
    pub mtu: u16,
    /// Mark of our own sockets; one more marks what answers a caller whose address is preserved.
    pub mark: u32,
    /// Routing table for captured prefixes; one more leads to preserved callers.
    pub table: u32,
    /// Priority of the first of our two policy rules; the second is one more.
    pub rule_priority: u32,
    /// Address of the TUN device.
    pub address4: Ipv4Addr,
    pub address6: Ipv6Addr,
    /// Bridges whose forwarded traffic may borrow the machine's identity.
    pub forward_interfaces: Vec<String>,
    /// Further prefixes to capture.
    pub prefixes: Vec<IpNet>,
    pub on_failure: OnFailure,
    /// Most TCP flows at a time.
    pub max_flows: usize,
    /// Most TCP flows whose SYN is not answered.
    pub max_half_open: usize,
    /// Bytes of each of a flow's two rings.
    pub ring_bytes: usize,
    /// vnet header offloads; off is slower and works everywhere.
    pub offload: bool,
}

impl Capture {
    /// Mark of what applications answer to callers whose address is preserved.
    pub fn caller_mark(&self) -> u32 {
        self.mark.wrapping_add(1)
    }

    /// Routing table by which these answers come back.
    pub fn caller_table(&self) -> u32 {
        self.table.wrapping_add(1)
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            tun: "mesh0".into(),
            mtu: 65535,
            mark: 0x6d65,
            table: 28005,
            rule_priority: 8000,
            address4: Ipv4Addr::new(100, 64, 100, 1),
            address6: Ipv6Addr::new(0xfd6d, 0x6573, 0x68, 0, 0, 0, 0, 1),
            forward_interfaces: Vec::new(),
            prefixes: Vec::new(),
            on_failure: OnFailure::Closed,
            max_flows: 65_536,
            max_half_open: 4_096,
            ring_bytes: 256 << 10,
            offload: true,
        }
    }
}

/// Tunnels to other members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tunnel {
    /// UDP (HBONE/3) and TCP (HBONE).
    pub listen: SocketAddr,
    /// `auto`: what works best with each peer; `quic` or `tcp`: that and nothing else, when we dial.
    pub transport: Preference,
    /// Trust domains other than our own whose members may connect.
    pub trust_domain_aliases: Vec<String>,
    /// Certificate revocation lists, PEM or DER; empty: none. Read again when it changes.
    pub crl_file: PathBuf,
    /// Handshakes under way at a time; above a quarter of it QUIC Retry is demanded.
    pub max_handshakes: usize,
    /// Streams that a peer may have open.
    pub max_streams: u32,
    /// Tunnels that a peer may have open to us.
    pub max_tunnels_per_peer: usize,
    /// CONNECTs per second and peer, over all of its tunnels; bursts of twice as many.
    pub max_connects_per_second: u32,
    /// Milliseconds without a packet until a tunnel is given up.
    pub idle_timeout_ms: u32,
    /// Milliseconds between keep-alives.
    pub keep_alive_ms: u32,
    /// Bytes that a stream may have in flight.
    pub stream_window: u32,
    /// Bytes that a connection may have in flight.
    pub connection_window: u32,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 15008),
            transport: Preference::Auto,
            trust_domain_aliases: Vec::new(),
            crl_file: PathBuf::new(),
            max_handshakes: 1024,
            max_streams: 4096,
            max_tunnels_per_peer: 32,
            max_connects_per_second: 10_000,
            idle_timeout_ms: 10_000,
            keep_alive_ms: 3_000,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
        }
    }
}

/// Connections that peers open towards our applications.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inbound {
    /// Ports that are delivered to loopback.
    pub loopback_ports: Vec<u16>,
    /// Applications see the caller's mesh address as their peer, where that can be had.
    pub preserve_source: bool,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            loopback_ports: Vec::new(),
            preserve_source: true,
        }
    }
}

/// Connections that our applications open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbound {
    /// Milliseconds to reach one endpoint.
    pub connect_timeout_ms: u64,
    /// Endpoints tried for one connection.
    pub attempts: usize,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 5_000,
            attempts: 3,
        }
    }
}

/// UDP flows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Udp {
    /// UDP to members that take none in a tunnel, such as Istio's own proxies: `allow` sends it in plain, `refuse` does not.
    pub plain: PlainUdp,
    /// Milliseconds without a datagram until a flow is over.
    pub idle_timeout_ms: u64,
    /// Flows that our applications may have open; the one that was idle for longest gives way to a new one.
    pub max_flows: usize,
}

/// What happens to UDP that cannot be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainUdp {
    Allow,
    Refuse,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            plain: PlainUdp::Allow,
            idle_timeout_ms: 60_000,
            max_flows: 2048,
        }
    }
}

/// Names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Resolver addresses, routed into the TUN and assigned to nothing.
    pub resolver4: Ipv4Addr,
    pub resolver6: Ipv6Addr,
    /// Where other names are asked; empty: the servers of /etc/resolv.conf.
    pub upstreams: Vec<SocketAddr>,
    pub cluster_domain: String,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            resolver4: Ipv4Addr::new(100, 64, 100, 53),
            resolver6: Ipv6Addr::new(0xfd6d, 0x6573, 0x68, 0, 0, 0, 0, 0x53),
            upstreams: Vec::new(),
            cluster_domain: "cluster.local".into(),
        }
    }
}

/// Probing the application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Commands that a probe may run, each exactly as the probe has it: program and arguments. The control plane alone
    /// cannot have a command run.
    pub exec: Vec<Vec<String>>,
}

/// Local interfaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Prometheus: `/metrics`, `/stats/prometheus`.
    pub metrics: SocketAddr,
    /// `/healthz/ready`.
    pub ready: SocketAddr,
    /// Group that may read the admin socket.
    pub group: String,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            metrics: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15020),
            ready: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15021),
            group: "mesh-agent-admin".into(),
        }
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A tracing filter, such as `info,mesh_agent::tunnel=debug`.
    pub level: String,
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}
