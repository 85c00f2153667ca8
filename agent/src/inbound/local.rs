//! The application's end of an inbound flow: a flow of the engine, in the caller's name, or a socket of ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use mesh_core::inbound::{Caller, Delivery, preserved};
use mesh_core::world::{Workload, World};
use tokio::io::AsyncWriteExt as _;

use crate::capture::{FlowSink, FlowSource, Opener};
use crate::copy::{End, Sink, Source, tcp};
use crate::failure::Failure;
use crate::flows::Facts;
use crate::shared::Shared;
use crate::socket;

/// What the application sends.
#[derive(Debug)]
pub(super) enum LocalSource {
    Flow(FlowSource),
    Socket(tcp::TcpSource),
}

/// What the application receives.
#[derive(Debug)]
pub(super) enum LocalSink {
    Flow(FlowSink),
    Socket(tcp::TcpSink),
}

/// Where to, and who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) world: &'a World,
    pub(super) own: Option<&'a Workload>,
    pub(super) delivery: &'a Delivery,
    pub(super) facts: &'a Facts,
    pub(super) forwarded_network: Option<&'a str>,
}

/// Connects to the application; with an application tunnel it hears first who calls.
pub(super) async fn connect(
    shared: &Shared,
    opener: Option<&Opener>,
    wanted: Wanted<'_>,
) -> io::Result<End<LocalSource, LocalSink>> {
    let limit = Duration::from_millis(shared.config.outbound.connect_timeout_ms);
    let Wanted { delivery, facts, .. } = wanted;
    let to = listener(shared, delivery.to);
    if let Some(opener) = opener
        && let Some(caller) = shown(shared, wanted, to)
    {
        match opener.open(caller, to, limit).await {
            Ok(End { source, sink }) => {
                return Ok(End {
                    source: LocalSource::Flow(source),
                    sink: LocalSink::Flow(sink),
                });
            }
            // A socket costs nothing of what the machine's own flows share.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tracing::debug!(target: "mesh_agent::inbound", %caller, %to, %error, "the caller's address is not shown to the application");
            }
            Err(error) => {
                if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable) {
                    shared.ways.doubt(to.ip());
                }
                return Err(error);
            }
        }
    }
    let mut stream = socket::connect(to, shared.config.capture.mark, limit).await?;
    if let Some(destination) = delivery.proxy {
        let header = mesh_core::proxy::header(facts.source, destination, facts.source_identity.as_ref());
        stream.write_all(&header).await?;
    }
    let End { source, sink } = tcp::split(stream);
    Ok(End {
        source: LocalSource::Socket(source),
        sink: LocalSink::Socket(sink),
    })
}

/// The address that the application shall see, if not our own.
fn shown(shared: &Shared, wanted: Wanted<'_>, to: SocketAddr) -> Option<IpAddr> {
    if !shared.ways.is_open(to.ip()) || wanted.delivery.proxy.is_some() {
        return None;
    }
    let caller = Caller {
        address: wanted.facts.source.ip(),
        forwarded_network: wanted.forwarded_network,
    };
    let decision = preserved(wanted.world, wanted.own?, &shared.membership.network, caller, to);
    decision
        .inspect_err(|why| {
            tracing::debug!(target: "mesh_agent::inbound", caller = %caller.address, %to, %why, "the caller's address is not shown to the application");
        })
        .ok()
}

pub(super) fn listener(shared: &Shared, target: SocketAddr) -> SocketAddr {
    if !shared.config.inbound.loopback_ports.contains(&target.port()) {
        return target;
    }
    let loopback: IpAddr = if target.is_ipv4() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    };
    SocketAddr::new(loopback, target.port())
}

impl Source for LocalSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Flow(source) => source.recv().await,
            Self::Socket(source) => source.recv().await,
        }
    }

    fn recv_ready(&mut self) -> Option<Result<Option<Bytes>, Failure>> {
        match self {
            Self::Flow(source) => source.recv_ready(),
            Self::Socket(source) => source.recv_ready(),
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Flow(source) => source.stop(),
            Self::Socket(source) => source.stop(),
        }
    }
}

impl Sink for LocalSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        match self {
            Self::Flow(sink) => sink.send(bytes).await,
            Self::Socket(sink) => sink.send(bytes).await,
        }
    }

    async fn send_all(&mut self, pieces: &mut Vec<Bytes>) -> Result<(), Failure> {
        match self {
            Self::Flow(sink) => sink.send_all(pieces).await,
            Self::Socket(sink) => sink.send_all(pieces).await,
        }
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Flow(sink) => sink.finish().await,
            Self::Socket(sink) => sink.finish().await,
        }
    }

    fn reset(&mut self) {
        match self {
            Self::Flow(sink) => sink.reset(),
            Self::Socket(sink) => sink.reset(),
        }
    }
}
