//! Captured packets into flows, and flows back into packets.
//!
//! [`Engine`] is sans-IO: packets and timer expiries go in, packets and [`Event`]s come out. After every call of a
//! `handle_*` method or a command, drain [`Engine::poll_packet`] and [`Engine::poll_event`], then look at
//! [`Engine::poll_timeout`]. Calling `handle_timeout` early is harmless.
//!
//! TCP flows are terminated by one tiny smoltcp interface each. The SYN itself is held until [`Engine::accept`], and
//! only then given to smoltcp, so a flow that is not answered costs neither rings nor timers of smoltcp; the
//! application sees the refusal that [`Engine::refuse`] names. [`Engine::connect`] opens a flow in the other direction.
//! UDP flows are datagrams with a key.

use std::collections::VecDeque;
use std::net::SocketAddr;

use smoltcp::socket::tcp::State as TcpState;

use crate::packet::build::{self, Checksum, Unreachable};
use crate::packet::{FlowKey, Packet, Transport};

mod api;
mod connect;
mod flow;
mod input;
mod output;
mod replies;
mod rings;
mod segment;
mod sequence;
mod slot;
mod tcp;
mod timers;

pub use api::{
    CloseReason, ConnectError, Counters, Event, FlowError, FlowId, FlowView, Instant, Limits, Offload, PacketOut, Read,
    Refusal, Ring, RingMemory,
};
pub use rings::HeapRings;

use connect::Ports;
use flow::{FlowTable, HeldCounts, Sending, State};
use replies::{Budget, Replies};
use sequence::Sequences;
use slot::Capabilities;
use tcp::{Setting, TcpFlow};
use timers::Timers;

/// The MTU of the TUN unless [`Engine::with_mtu`] says otherwise: flows end here, so the largest is the best.
const DEFAULT_MTU: u16 = 65_535;
/// RFC 8200 5; and enough for all headers of IPv4.
const MIN_MTU: u16 = 1280;

/// The flow engine. See the module.
pub struct Engine {
    limits: Limits,
    setting: Setting,
    now: Instant,
    table: FlowTable,
    held: HeldCounts,
    /// Live flows that we opened.
    opened: usize,
    timers: Timers,
    /// Flows that may have something to send, each once.
    dirty: VecDeque<FlowId>,
    /// Packets that the first of them sent in a row.
    burst: usize,
    events: VecDeque<Event>,
    /// Payload bytes of the datagrams among the events.
    datagram_bytes: usize,
    replies: Replies,
    budget: Budget,
    sequences: Sequences,
    ports: Ports,
    rings: Box<dyn RingMemory>,
    /// For packets that are changed before smoltcp sees them.
    scratch: Vec<u8>,
    counters: Counters,
}

impl Engine {
    /// An engine with no flow. `seed` makes initial sequence numbers.
    pub fn new(limits: Limits, offload: Offload, seed: [u8; 32], rings: Box<dyn RingMemory>) -> Self {
        // The kernel splits only what it also checksums.
        let offload = Offload {
            segmentation: offload.segmentation && offload.checksum,
            ..offload
        };
        let capabilities = Capabilities {
            mtu: DEFAULT_MTU,
            segmentation: offload.segmentation,
        };
        Self {
            limits,
            setting: Setting { capabilities, offload },
            now: Instant::ZERO,
            table: FlowTable::default(),
            held: HeldCounts::default(),
            opened: 0,
            timers: Timers::default(),
            dirty: VecDeque::new(),
            burst: 0,
            events: VecDeque::new(),
            datagram_bytes: 0,
            replies: Replies::default(),
            budget: Budget::new(),
            sequences: Sequences::new(&seed),
            ports: Ports::new(&seed),
            rings,
            scratch: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The same with another MTU than 65,535; at least 1,280.
    #[must_use]
    pub fn with_mtu(mut self, mtu: u16) -> Self {
        self.setting.capabilities.mtu = mtu.max(MIN_MTU);
        self
    }

    /// Takes one IP packet (without vnet header).
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        self.advance(now);
        self.counters.packets_in += 1;
        let Ok(packet) = Packet::parse(packet) else {
            self.counters.malformed += 1;
            return;
        };
        if !self.setting.offload.checksum && !packet.checksums_valid() {
            self.counters.malformed += 1;
            return;
        }
        match (packet.transport(), packet.key()) {
            (Transport::Tcp(tcp), Some(key)) => self.handle_segment(key, &packet, &tcp),
            (Transport::Udp(udp), Some(key)) => self.handle_datagram(key, udp.payload()),
            (Transport::Icmp, _) => self.handle_icmp(&packet),
            _ => self.counters.not_ours += 1,
        }
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        while let Some(id) = self.timers.pop_due(self.now) {
            self.handle_deadline(id);
        }
    }

    /// Writes the next packet for the TUN into `out` (at least 65,535 bytes).
    pub fn poll_packet(&mut self, now: Instant, out: &mut [u8]) -> Option<PacketOut> {
        self.advance(now);
        let packet = self.replies.pop(out).or_else(|| self.next_segment(out))?;
        self.counters.packets_out += 1;
        Some(packet)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Datagram { payload, .. } = &event {
            self.datagram_bytes -= payload.len();
        }
        Some(event)
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Lets the SYN-ACK go.
    pub fn accept(&mut self, now: Instant, flow: FlowId) -> Result<(), FlowError> {
        self.advance(now);
        let entry = self.table.get_mut(flow).ok_or(FlowError::Gone)?;
        let State::Held(held) = &entry.state else { return Ok(()) };
        let Some(rx) = self.rings.take() else {
            return self.no_memory(flow);
        };
        let Some(tx) = self.rings.take() else {
            self.rings.give(rx.id);
            return self.no_memory(flow);
        };
        let ids = [rx.id, tx.id];
        let random = self.sequences.next(&entry.key);
        let opened = syn(&held.syn).and_then(|tcp| {
            TcpFlow::new(
                self.now,
                self.setting,
                &held.syn,
                &tcp,
                entry.key.destination,
                [rx, tx],
                random,
            )
        });
        let Some(opened) = opened else {
            ids.into_iter().for_each(|id| self.rings.give(id));
            self.refuse(now, flow, Refusal::Refused);
            return Err(FlowError::Gone);
        };
        entry.state = State::Open(Box::new(opened));
        entry.active = self.now;
        self.held.remove(&entry.key.destination);
        self.mark_dirty(flow);
        Ok(())
    }

    /// Refuses a flow that was not accepted yet (an accepted one is aborted).
    pub fn refuse(&mut self, now: Instant, flow: FlowId, why: Refusal) {
        self.advance(now);
        let Some(entry) = self.table.get(flow) else { return };
        let State::Held(held) = &entry.state else {
            return self.abort(now, flow);
        };
        let reply = match why {
            Refusal::Refused => syn(&held.syn).and_then(|tcp| build::reset(&entry.key, &tcp)),
            Refusal::Denied => build::unreachable(&held.syn, Unreachable::Prohibited),
            Refusal::Unreachable => build::unreachable(&held.syn, Unreachable::Host),
        };
        self.reply(reply);
        self.remove(flow, CloseReason::Aborted);
    }

    /// Hands received bytes to `take`, contiguous and at most `max`; `take` must use all of them. One copy, made by the caller.
    pub fn read_with(
        &mut self,
        now: Instant,
        flow: FlowId,
        max: usize,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Read, FlowError> {
        self.advance(now);
        let entry = self.table.get_mut(flow).ok_or(FlowError::Gone)?;
        let State::Open(tcp) = &mut entry.state else {
            return Ok(Read::Blocked);
        };
        if max == 0 {
            return Ok(Read::Bytes(0));
        }
        let read = tcp.read_with(max, take);
        match read {
            Read::Bytes(_) => {
                entry.active = self.now;
                // The window may have opened.
                self.mark_dirty(flow);
            }
            Read::Blocked => entry.readable_told = false,
            Read::End => {
                entry.end_read = true;
                if entry.over {
                    self.remove(flow, CloseReason::Finished);
                }
            }
        }
        Ok(read)
    }

    /// Copies bytes into the flow's sending ring; returns how many fit. After a short write a `Writable` event will come.
    pub fn write(&mut self, now: Instant, flow: FlowId, bytes: &[u8]) -> Result<usize, FlowError> {
        self.advance(now);
        let entry = self.table.get_mut(flow).ok_or(FlowError::Gone)?;
        if entry.sending != Sending::Open {
            return Err(FlowError::Finished);
        }
        let written = match &mut entry.state {
            State::Open(tcp) if tcp.may_write() => tcp.write(bytes),
            State::Open(_) | State::Held(_) => 0,
        };
        entry.wants_room = written < bytes.len();
        if written > 0 {
            entry.active = self.now;
            self.mark_dirty(flow);
        }
        Ok(written)
    }

    /// No more bytes will be written (FIN).
    pub fn finish(&mut self, now: Instant, flow: FlowId) -> Result<(), FlowError> {
        self.advance(now);
        let entry = self.table.get_mut(flow).ok_or(FlowError::Gone)?;
        if entry.sending != Sending::Open {
            return Ok(());
        }
        entry.wants_room = false;
        entry.active = self.now;
        entry.sending = Sending::FinishLater;
        if let State::Open(tcp) = &mut entry.state
            && tcp.try_finish()
        {
            entry.sending = Sending::Finished;
            self.mark_dirty(flow);
        }
        Ok(())
    }

    /// RST, now.
    pub fn abort(&mut self, now: Instant, flow: FlowId) {
        self.advance(now);
        self.reset(flow, CloseReason::Aborted);
    }

    /// Sends a datagram into the TUN, from `source` (the mesh side) to `destination` (the application).
    pub fn send_datagram(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let partial = self.setting.offload.checksum;
        let checksum = if partial { Checksum::Partial } else { Checksum::Full };
        let packet = build::datagram(source, destination, payload, checksum);
        let header = if source.is_ipv4() { 20 } else { 40 };
        self.reply_with(packet, partial.then_some((header, 6)));
    }

    /// Tells the application why its datagram did not arrive: refused is a closed port (ICMP type 3 code 3; IPv6: type 1 code 4).
    /// `original` is the captured key.
    pub fn datagram_unreachable(&mut self, original: FlowKey, payload: &[u8], why: Refusal) {
        if !self.budget.take(self.now) {
            self.counters.dropped_replies += 1;
            return;
        }
        // More of the payload would not be quoted.
        let quoted = &payload[..payload.len().min(usize::from(MIN_MTU))];
        let packet = build::datagram(original.source, original.destination, quoted, Checksum::Full);
        let why = match why {
            Refusal::Refused => Unreachable::Port,
            Refusal::Denied => Unreachable::Prohibited,
            Refusal::Unreachable => Unreachable::Host,
        };
        self.reply(packet.and_then(|packet| build::unreachable(&packet, why)));
    }

    /// Live TCP flows.
    pub fn flows(&self) -> usize {
        self.table.len()
    }

    /// Flows whose SYN is not answered yet.
    pub fn half_open(&self) -> usize {
        self.held.total()
    }

    /// Deadlines that are set; none without flows.
    pub fn deadlines(&self) -> usize {
        self.timers.len()
    }

    /// Packets and flows that wait for `poll_packet`; 0 after it returned `None`.
    pub fn backlog(&self) -> usize {
        self.replies.len() + self.dirty.len()
    }

    /// Live TCP flows, one by one.
    pub fn views(&self) -> impl Iterator<Item = FlowView> {
        self.table.iter().map(|(id, flow)| {
            let (state, unread, unacknowledged) = match &flow.state {
                State::Held(_) => ("HELD", 0, 0),
                State::Open(tcp) => (state_name(tcp.state()), tcp.unread(), tcp.unacknowledged()),
            };
            FlowView {
                flow: id,
                key: flow.key,
                state,
                unread,
                unacknowledged,
            }
        })
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Time never goes back, whatever the caller says.
    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    fn no_memory(&mut self, flow: FlowId) -> Result<(), FlowError> {
        self.counters.dropped_no_memory += 1;
        self.refuse(self.now, flow, Refusal::Refused);
        Err(FlowError::Gone)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("flows", &self.flows())
            .field("half_open", &self.half_open())
            .field("backlog", &self.backlog())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// The TCP header of a held SYN.
fn syn(bytes: &[u8]) -> Option<crate::packet::Tcp<'_>> {
    match Packet::parse(bytes).ok()?.transport() {
        Transport::Tcp(tcp) => Some(tcp),
        Transport::Udp(_) | Transport::Icmp | Transport::Other(_) => None,
    }
}

fn state_name(state: TcpState) -> &'static str {
    match state {
        TcpState::Closed => "CLOSED",
        TcpState::Listen => "LISTEN",
        TcpState::SynSent => "SYN-SENT",
        TcpState::SynReceived => "SYN-RECEIVED",
        TcpState::Established => "ESTABLISHED",
        TcpState::FinWait1 => "FIN-WAIT-1",
        TcpState::FinWait2 => "FIN-WAIT-2",
        TcpState::CloseWait => "CLOSE-WAIT",
        TcpState::Closing => "CLOSING",
        TcpState::LastAck => "LAST-ACK",
        TcpState::TimeWait => "TIME-WAIT",
    }
}
