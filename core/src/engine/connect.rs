//! Flows that we open towards the application, in the name of a caller elsewhere: the application sees that caller's address
//! as its peer.
//!
//! The kernel tells whose packets are whose by its connection tracking, so that a silent flow must show signs of life before
//! that forgets it.

use std::net::{IpAddr, SocketAddr};

use super::api::{CloseReason, ConnectError, FlowId, Instant};
use super::flow::{Flow, Opened, State};
use super::tcp::TcpFlow;
use super::{Engine, build};
use crate::packet::icmp::Refused;
use crate::packet::{FlowKey, Packet, Protocol};

impl Engine {
    /// Opens a TCP connection from an address that is not this machine's to the application. `Connected` tells that it was
    /// answered; `Closed` that it was refused (`ResetByApplication`), or that an ICMP error came (`Unreachable`). How long
    /// to wait for either is the caller's decision: [`Engine::abort`] ends it. The key's source is the application.
    pub fn connect(
        &mut self,
        now: Instant,
        caller: IpAddr,
        application: SocketAddr,
    ) -> Result<(FlowId, FlowKey), ConnectError> {
        self.advance(now);
        if self.table.len() >= self.limits.flows || self.opened >= self.limits.opened {
            self.counters.dropped_flow_limit += 1;
            return Err(ConnectError::TooMany);
        }
        let (from, to) = (caller.to_canonical(), application.ip().to_canonical());
        if from.is_ipv4() != to.is_ipv4() || [from, to].iter().any(is_of_no_host) || application.port() == 0 {
            return Err(ConnectError::Address);
        }
        let mut key = FlowKey {
            protocol: Protocol::Tcp,
            source: SocketAddr::new(to, application.port()),
            destination: SocketAddr::new(from, 0),
        };
        let free = self.ports.find(|port| {
            key.destination.set_port(port);
            self.table.find(&key).is_none()
        });
        key.destination.set_port(free.ok_or(ConnectError::NoPort)?);
        let flow = self
            .open_towards(key)
            .inspect_err(|_| self.counters.dropped_no_memory += 1)?;
        Ok((flow, key))
    }

    fn open_towards(&mut self, key: FlowKey) -> Result<FlowId, ConnectError> {
        let rx = self.rings.take().ok_or(ConnectError::NoMemory)?;
        let Some(tx) = self.rings.take() else {
            self.rings.give(rx.id);
            return Err(ConnectError::NoMemory);
        };
        let ids = [rx.id, tx.id];
        let random = self.sequences.next(&key);
        let timestamps = u32::try_from(self.sequences.between(&key) >> 32).unwrap_or(0);
        let ends = [key.destination, key.source];
        let Some(tcp) = TcpFlow::connect(self.now, self.setting, ends, [rx, tx], random, timestamps) else {
            ids.into_iter().for_each(|id| self.rings.give(id));
            return Err(ConnectError::Address);
        };
        let id = self.table.insert(self.now, key, State::Open(Box::new(tcp)));
        if let Some(flow) = self.table.get_mut(id) {
            flow.opened = Some(Opened {
                answered: false,
                heard: self.now,
            });
        }
        self.opened += 1;
        self.mark_dirty(id);
        Ok(id)
    }

    /// An ICMP error ends a flow whose SYN it quotes; others are hints at most (RFC 5927 6.1), and the link has no routers.
    pub(super) fn handle_icmp(&mut self, packet: &Packet<'_>) {
        let Some(Refused { key, sequence }) = Refused::parse(packet) else {
            self.counters.not_ours += 1;
            return;
        };
        let quoted = self.table.find(&key).filter(|id| {
            let flow = self.table.get(*id);
            flow.is_some_and(|flow| matches!(&flow.state, State::Open(tcp) if tcp.is_waiting_with(sequence)))
        });
        match quoted {
            Some(id) => self.remove(id, CloseReason::Unreachable),
            None => self.counters.not_ours += 1,
        }
    }

    /// Sends a sign of life, if one is due.
    pub(super) fn keep_alive(&mut self, id: FlowId) {
        let now = self.now;
        let Some(flow) = self.table.get_mut(id) else { return };
        if flow.keep_alive_at().is_none_or(|at| at > now) {
            return;
        }
        let (State::Open(tcp), Some(opened)) = (&flow.state, &mut flow.opened) else {
            return;
        };
        opened.heard = now;
        let (from, to) = (flow.key.destination, flow.key.source);
        let segment = tcp.sign_of_life().and_then(|control| build::segment(from, to, control));
        self.reply(segment);
    }
}

impl Flow {
    /// When the next sign of life is due, if nothing passes before.
    pub(super) fn keep_alive_at(&self) -> Option<Instant> {
        let State::Open(tcp) = &self.state else { return None };
        let opened = self.opened.filter(|_| !self.over)?;
        Some(opened.heard + tcp.silence()?)
    }
}

/// The ports of callers. They go round, so that one is used again as late as possible: the application's kernel keeps a
/// closed connection for a minute.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
}

impl Ports {
    /// Never one that only a privileged process could have: some services trust them.
    const FIRST: u16 = 1024;
    /// More that are in use in a row mean that the caller has more connections than it should.
    const TRIES: usize = 4096;

    /// Starts somewhere, so that a restarted agent does not begin with what it just used.
    pub(super) fn new(seed: &[u8; 32]) -> Self {
        Self {
            next: u16::from_be_bytes([seed[0], seed[31]]).max(Self::FIRST),
        }
    }

    /// The next port that `is_free`.
    fn find(&mut self, mut is_free: impl FnMut(u16) -> bool) -> Option<u16> {
        (0..Self::TRIES).find_map(|_| {
            let port = self.next;
            self.next = port.checked_add(1).unwrap_or(Self::FIRST);
            is_free(port).then_some(port)
        })
    }
}

/// Whether no packet may have this source or destination.
fn is_of_no_host(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(four) if four.is_broadcast());
    address.is_unspecified() || address.is_multicast() || broadcast
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn ports_go_round_without_the_privileged_and_the_used() {
        let mut ports = Ports { next: 65_534 };
        let taken: Vec<_> = (0..3).map(|_| ports.find(|port| port != 65_535)).collect();
        assert_eq!(taken, [Some(65_534), Some(1024), Some(1025)]);
        assert_eq!(ports.find(|_| false), None);
        assert!(Ports::new(&[0; 32]).next >= Ports::FIRST);
    }
}
