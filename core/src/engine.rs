//! Captured packets into flows, and flows back into packets.
//!
//! [`Engine`] is sans-IO: packets and timer expiries go in, packets and [`Event`]s come out. After every call of a
//! `handle_*` method or a command, drain [`Engine::poll_packet`] and [`Engine::poll_event`], then look at
//! [`Engine::poll_timeout`]. Calling `handle_timeout` early is harmless.
//!
//! TCP flows are terminated by one tiny smoltcp interface each. The SYN-ACK is held until [`Engine::accept`]; the
//! application sees the refusal that [`Engine::refuse`] names. UDP flows are datagrams with a key.

mod clock;
mod flow;
mod rings;
mod slot;
mod timers;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;
use slab::Slab;

use crate::packet::build::{self, Unreachable};
use crate::packet::checksum::pseudo_header;
use crate::packet::{FlowKey, Packet, PacketError, Segment};
use flow::{Device, TcpFlow};
pub use rings::{HeapRings, Ring, RingMemory};
use timers::Timers;

/// A point in time: the duration since any fixed moment that the caller chose.
pub type Instant = Duration;

/// One flow. Never reused while the flow lives; a stale id finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// What is bounded, and by how much.
#[derive(Clone, Debug)]
pub struct Limits {
    /// All TCP flows.
    pub flows: usize,
    /// TCP flows whose SYN is not answered yet.
    pub half_open: usize,
    /// The same for one destination address and port.
    pub half_open_per_destination: usize,
    /// Bytes of one ring (a flow has two). Power of two, at least 64 KiB.
    pub ring_bytes: usize,
    /// Events that wait to be polled; packets that would make more are dropped.
    pub events: usize,
    /// A flow that we finished, and whose application neither sends nor finishes, is reset after this long.
    pub linger: Duration,
    /// The TUN's MTU.
    pub mtu: usize,
}

/// What the TUN device does for us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// vnet header: checksums from the TUN are not verified, ours are left to the kernel.
    pub checksum: bool,
    /// vnet header: TCP segments may be larger than the MTU both ways.
    pub segmentation: bool,
}

/// Why a SYN is refused, and so what the application sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RST: connection refused.
    Refused,
    /// ICMP type 3 code 13 (IPv6: type 1 code 1): administratively prohibited.
    Denied,
    /// ICMP type 3 code 1 (IPv6: type 1 code 3): host unreachable.
    Unreachable,
}

/// Why a TCP flow is over, as the engine saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides finished.
    Finished,
    /// The application reset it.
    ResetByApplication,
    /// We aborted or refused it.
    Aborted,
    /// Nothing was heard for too long.
    TimedOut,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A SYN arrived; answer with `accept` or `refuse`.
    Opened { flow: FlowId, key: FlowKey },
    /// Bytes, or the end, can be read.
    Readable { flow: FlowId },
    /// There is room to write again after a short write.
    Writable { flow: FlowId },
    /// The flow is over and forgotten; the last event of a flow.
    Closed { flow: FlowId, reason: CloseReason },
    /// A UDP datagram was captured. `key.source` is the application.
    Datagram { key: FlowKey, payload: bytes::Bytes },
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets_in: u64,
    pub packets_out: u64,
    pub malformed: u64,
    pub not_ours: u64,
    pub dropped_flow_limit: u64,
    pub dropped_half_open: u64,
    pub dropped_no_memory: u64,
    pub dropped_events_full: u64,
}

/// One packet to be written to the TUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOut {
    /// Bytes of the packet at the start of the buffer.
    pub len: usize,
    /// The TCP checksum field holds the pseudo-header sum only: (csum_start, csum_offset) of the vnet header.
    pub partial_checksum: Option<(u16, u16)>,
    /// Payload bytes per segment when the kernel is to split it.
    pub gso_size: Option<u16>,
    /// The IP version, 4 or 6.
    pub version: u8,
}

/// Why bytes could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The flow is gone: closed, reset, or never was.
    #[error("the flow is gone")]
    Gone,
    /// Writing after `finish`.
    #[error("the flow's sending side is finished")]
    Finished,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now; a `Readable` event will come.
    Blocked,
    /// The application finished its side.
    End,
}

/// The flow engine. See the module.
#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    device: Device,
    random: u64,
    rings: Box<dyn RingMemory>,
    flows: Slab<TcpFlow>,
    index: FxHashMap<FlowKey, usize>,
    serial: u64,
    half_open: usize,
    half_open_to: FxHashMap<SocketAddr, usize>,
    /// Flows that may have something to send, each at most once.
    dirty: VecDeque<FlowId>,
    /// Packets that the flow at the front of `dirty` sent in its turn.
    turn: usize,
    timers: Timers,
    /// Whole packets, made while others came in; the flag says that smoltcp left the TCP checksum to us.
    ready: VecDeque<(Vec<u8>, bool)>,
    events: VecDeque<Event>,
    datagrams: usize,
    counters: Counters,
}

impl Engine {
    /// An engine with no flow. `seed` makes initial sequence numbers.
    pub fn new(limits: Limits, offload: Offload, seed: [u8; 32], rings: Box<dyn RingMemory>) -> Self {
        let device = Device {
            mtu: limits.mtu.clamp(1280, slot::MAX_PACKET),
            offload,
        };
        let words = seed
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        Self {
            limits,
            device,
            random: words.fold(0, |all, word| all.rotate_left(17) ^ word),
            rings,
            flows: Slab::new(),
            index: FxHashMap::default(),
            serial: 0,
            half_open: 0,
            half_open_to: FxHashMap::default(),
            dirty: VecDeque::new(),
            turn: 0,
            timers: Timers::default(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
            datagrams: 0,
            counters: Counters::default(),
        }
    }

    /// Takes one IP packet (without vnet header).
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        clock::set(now);
        self.counters.packets_in += 1;
        match Packet::parse(packet) {
            Ok(packet) => match packet.segment {
                Segment::Udp { payload } => self.handle_datagram(packet.key, payload),
                Segment::Tcp { .. } => self.handle_segment(now, &packet),
            },
            Err(PacketError::NotCaptured) => self.counters.not_ours += 1,
            Err(PacketError::Malformed | PacketError::Fragment) => self.counters.malformed += 1,
        }
    }

    fn handle_datagram(&mut self, key: FlowKey, payload: &[u8]) {
        if self.datagrams >= self.limits.events {
            self.counters.dropped_events_full += 1;
            return;
        }
        self.datagrams += 1;
        self.events.push_back(Event::Datagram {
            key,
            payload: bytes::Bytes::copy_from_slice(payload),
        });
    }

    fn handle_segment(&mut self, now: Instant, packet: &Packet<'_>) {
        let seq = syn_sequence(packet);
        if let Some(slot) = self.index.get(&packet.key).copied() {
            // The local kernel opens a connection anew: it has forgotten the old one, so do we.
            if seq.is_none_or(|seq| seq == self.flows[slot].syn_seq) {
                return self.feed(now, slot, packet.bytes);
            }
            self.forget(slot, CloseReason::ResetByApplication);
        }
        match seq {
            Some(seq) => self.open(now, packet, seq),
            None => {
                if let Some(reset) = build::reset(packet) {
                    self.push_ready(reset, false);
                }
            }
        }
    }

    fn feed(&mut self, now: Instant, slot: usize, bytes: &[u8]) {
        let mut replies = Vec::new();
        self.flows[slot].ingress(now, bytes, self.device, &mut replies);
        for reply in replies {
            self.push_ready(reply, self.device.offload.checksum);
        }
        self.touch(slot);
    }

    fn open(&mut self, now: Instant, packet: &Packet<'_>, seq: u32) {
        let waiting = self.half_open_to.get(&packet.key.destination).copied().unwrap_or(0);
        if self.flows.len() >= self.limits.flows {
            self.counters.dropped_flow_limit += 1;
            return;
        }
        if self.half_open >= self.limits.half_open || waiting >= self.limits.half_open_per_destination {
            self.counters.dropped_half_open += 1;
            return;
        }
        let Some(rings) = self.take_rings() else {
            self.counters.dropped_no_memory += 1;
            return;
        };
        let slot = self.flows.vacant_key();
        self.serial += 1;
        let id = FlowId(self.serial << SLOT_BITS | slot as u64);
        let seed = self.next_random();
        let flow = TcpFlow::new(id, packet.key, packet.bytes, seq, rings, self.device, seed, now);
        self.flows.insert(flow);
        self.index.insert(packet.key, slot);
        self.half_open += 1;
        *self.half_open_to.entry(packet.key.destination).or_default() += 1;
        self.events.push_back(Event::Opened {
            flow: id,
            key: packet.key,
        });
        self.feed(now, slot, packet.bytes);
    }

    fn take_rings(&mut self) -> Option<[Ring; 2]> {
        let first = self.rings.take()?;
        match self.rings.take() {
            Some(second) => Some([first, second]),
            None => {
                self.rings.give(first.id);
                None
            }
        }
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        clock::set(now);
        while let Some(id) = self.timers.pop(now) {
            let Some(slot) = self.slot(id) else { continue };
            let flow = &mut self.flows[slot];
            flow.deadline = None;
            if flow.is_lingering() && now >= flow.heard + self.limits.linger {
                flow.abort();
            }
            self.touch(slot);
        }
    }

    /// Writes the next packet for the TUN into `out` (at least 65,535 bytes).
    pub fn poll_packet(&mut self, now: Instant, out: &mut [u8]) -> Option<PacketOut> {
        clock::set(now);
        if let Some((packet, partial)) = self.ready.pop_front() {
            let room = out.get_mut(..packet.len())?;
            room.copy_from_slice(&packet);
            self.counters.packets_out += 1;
            return Some(describe(room, partial, None));
        }
        while let Some(id) = self.dirty.front().copied() {
            let Some(slot) = self.slot(id) else {
                self.dirty.pop_front();
                continue;
            };
            if let Some((length, segment)) = self.flows[slot].egress(now, out, self.device) {
                self.turn += 1;
                if self.turn >= PACKETS_PER_TURN {
                    self.turn = 0;
                    self.dirty.rotate_left(1);
                }
                self.counters.packets_out += 1;
                return Some(describe(&mut out[..length], self.device.offload.checksum, segment));
            }
            self.turn = 0;
            self.dirty.pop_front();
            self.settle(now, slot);
        }
        None
    }

    /// A flow that has nothing more to send for now: tell its owner, set its deadline, or forget it.
    fn settle(&mut self, now: Instant, slot: usize) {
        self.signal(slot);
        let flow = &mut self.flows[slot];
        flow.queued = false;
        if let Some(reason) = flow.over() {
            return self.forget(slot, reason);
        }
        let old = flow.deadline;
        // Never in the past: what is due now was just served.
        let served = flow.poll_at(now).map(|at| at.max(now + SHORTEST));
        let linger = flow
            .is_lingering()
            .then(|| (flow.heard + self.limits.linger).max(now + SHORTEST));
        flow.deadline = served.into_iter().chain(linger).min();
        self.timers.set(flow.id, old, flow.deadline);
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if matches!(event, Event::Datagram { .. }) {
            self.datagrams -= 1;
        }
        Some(event)
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Lets the SYN-ACK go.
    pub fn accept(&mut self, now: Instant, flow: FlowId) -> Result<(), FlowError> {
        clock::set(now);
        let slot = self.slot(flow).ok_or(FlowError::Gone)?;
        if self.flows[slot].over().is_some() {
            return Err(FlowError::Gone);
        }
        self.answered(slot);
        self.flows[slot].accept();
        self.touch(slot);
        Ok(())
    }

    /// Refuses a flow that was not accepted yet (an accepted one is aborted).
    pub fn refuse(&mut self, now: Instant, flow: FlowId, why: Refusal) {
        let Some(slot) = self.slot(flow) else { return };
        let why = match why {
            Refusal::Refused => return self.abort(now, flow),
            Refusal::Denied => Unreachable::Prohibited,
            Refusal::Unreachable => Unreachable::Host,
        };
        let flow = &self.flows[slot];
        let Some(syn) = &flow.syn else {
            return self.abort(now, flow.id);
        };
        let icmp = build::unreachable(syn, flow.key.source.ip(), flow.key.destination.ip(), why);
        if let Some(icmp) = icmp {
            self.push_ready(icmp, false);
        }
        self.forget(slot, CloseReason::Aborted);
    }

    /// Hands received bytes to `take`, contiguous and at most `max`; `take` must use all of them. One copy, made by the
    /// caller.
    pub fn read_with(
        &mut self,
        now: Instant,
        flow: FlowId,
        max: usize,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Read, FlowError> {
        clock::set(now);
        let slot = self.slot(flow).ok_or(FlowError::Gone)?;
        let read = self.flows[slot].read(max, take)?;
        match read {
            Read::Bytes(_) => self.touch(slot),
            Read::Blocked => self.flows[slot].signalled = false,
            Read::End => {}
        }
        Ok(read)
    }

    /// Copies bytes into the flow's sending ring; returns how many fit. After a short write a `Writable` event will come.
    pub fn write(&mut self, now: Instant, flow: FlowId, bytes: &[u8]) -> Result<usize, FlowError> {
        clock::set(now);
        let slot = self.slot(flow).ok_or(FlowError::Gone)?;
        let written = self.flows[slot].write(bytes)?;
        if written > 0 {
            self.touch(slot);
        }
        Ok(written)
    }

    /// No more bytes will be written (FIN).
    pub fn finish(&mut self, now: Instant, flow: FlowId) -> Result<(), FlowError> {
        clock::set(now);
        let slot = self.slot(flow).ok_or(FlowError::Gone)?;
        self.flows[slot].finish();
        self.touch(slot);
        Ok(())
    }

    /// RST, now.
    pub fn abort(&mut self, now: Instant, flow: FlowId) {
        clock::set(now);
        let Some(slot) = self.slot(flow) else { return };
        self.answered(slot);
        self.flows[slot].abort();
        self.touch(slot);
    }

    /// Sends a datagram into the TUN, from `source` (the mesh side) to `destination` (the application).
    pub fn send_datagram(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        if let Some(packet) = build::udp(source, destination, payload) {
            self.push_ready(packet, false);
        }
    }

    /// Tells the application that its datagram reached a closed port. `original` is the captured key.
    pub fn datagram_unreachable(&mut self, original: FlowKey, payload: &[u8]) {
        let quoted = build::udp(original.source, original.destination, payload);
        let icmp = quoted.and_then(|quoted| {
            build::unreachable(
                &quoted,
                original.source.ip(),
                original.destination.ip(),
                Unreachable::Port,
            )
        });
        if let Some(icmp) = icmp {
            self.push_ready(icmp, false);
        }
    }

    /// Live TCP flows.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// TCP flows whose SYN is not answered.
    pub fn half_open(&self) -> usize {
        self.half_open
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn slot(&self, id: FlowId) -> Option<usize> {
        let slot = usize::try_from(id.0 & SLOT_MASK).ok()?;
        self.flows.get(slot).filter(|flow| flow.id == id).map(|_| slot)
    }

    /// Something about a flow changed: tell its owner, and have it served.
    fn touch(&mut self, slot: usize) {
        self.signal(slot);
        let flow = &mut self.flows[slot];
        if !flow.queued {
            flow.queued = true;
            self.dirty.push_back(flow.id);
        }
    }

    fn signal(&mut self, slot: usize) {
        let flow = &mut self.flows[slot];
        if flow.syn.is_none() && !flow.signalled && flow.is_readable() {
            flow.signalled = true;
            self.events.push_back(Event::Readable { flow: flow.id });
        }
        if flow.wants_room && flow.has_room() {
            flow.wants_room = false;
            self.events.push_back(Event::Writable { flow: flow.id });
        }
    }

    /// The flow is not half-open any more.
    fn answered(&mut self, slot: usize) {
        let flow = &mut self.flows[slot];
        if flow.syn.take().is_none() {
            return;
        }
        self.half_open -= 1;
        if let Some(waiting) = self.half_open_to.get_mut(&flow.key.destination) {
            *waiting -= 1;
            if *waiting == 0 {
                self.half_open_to.remove(&flow.key.destination);
            }
        }
    }

    fn forget(&mut self, slot: usize, reason: CloseReason) {
        self.answered(slot);
        let flow = self.flows.remove(slot);
        let id = flow.id;
        self.timers.set(id, flow.deadline, None);
        self.index.remove(&flow.key);
        for ring in flow.into_rings() {
            self.rings.give(ring);
        }
        self.events.push_back(Event::Closed { flow: id, reason });
    }

    fn push_ready(&mut self, packet: Vec<u8>, partial: bool) {
        // The local kernel repeats what it does not get an answer to.
        if self.ready.len() < MAX_READY {
            self.ready.push_back((packet, partial));
        }
    }

    fn next_random(&mut self) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The sequence number of a packet that opens a connection.
fn syn_sequence(packet: &Packet<'_>) -> Option<u32> {
    if !packet.is_syn() {
        return None;
    }
    let at = if packet.key.source.is_ipv4() {
        usize::from(packet.bytes[0] & 0xf) * 4
    } else {
        40
    } + 4;
    Some(u32::from_be_bytes(packet.bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What the vnet header has to say; puts the pseudo-header sum in place when the checksum is left to the kernel.
fn describe(packet: &mut [u8], partial: bool, gso_size: Option<u16>) -> PacketOut {
    let version = packet[0] >> 4;
    let mut out = PacketOut {
        len: packet.len(),
        partial_checksum: None,
        gso_size,
        version,
    };
    if !partial {
        return out;
    }
    if let Ok(Packet {
        key,
        segment: Segment::Tcp { .. },
        ..
    }) = Packet::parse(packet)
    {
        let header = if version == 4 {
            usize::from(packet[0] & 0xf) * 4
        } else {
            40
        };
        let sum = pseudo_header(key.source.ip(), key.destination.ip(), build::TCP, packet.len() - header).folded();
        packet[header + 16..header + 18].copy_from_slice(&sum.to_be_bytes());
        out.partial_checksum = u16::try_from(header).ok().map(|start| (start, 16));
    }
    out
}

/// A flow id is a serial number above a slot.
const SLOT_BITS: u32 = 24;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
/// Packets that one flow sends before the next has its turn.
const PACKETS_PER_TURN: usize = 16;
/// Packets made without a buffer that wait to be polled.
const MAX_READY: usize = 4096;
/// The least time until a flow is served again by its timer.
const SHORTEST: Duration = Duration::from_millis(1);
