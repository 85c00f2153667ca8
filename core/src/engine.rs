//! Captured packets into flows, and flows back into packets.
//!
//! [`Engine`] is sans-IO: packets and timer expiries go in, packets and [`Event`]s come out. After every call of a
//! `handle_*` method or a command, drain [`Engine::poll_packet`] and [`Engine::poll_event`], then look at
//! [`Engine::poll_timeout`]. Calling `handle_timeout` early is harmless.
//!
//! TCP flows are terminated by one tiny smoltcp interface each. The SYN-ACK is held until [`Engine::accept`]; the
//! application sees the refusal that [`Engine::refuse`] names. UDP flows are datagrams with a key.

use std::net::SocketAddr;
use std::time::Duration;

use crate::packet::FlowKey;

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
    /// A flow that closed on one side only is dropped after this long without a packet; also FIN-WAIT and the like.
    pub linger: Duration,
}

/// What the TUN device does for us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// vnet header: checksums from the TUN are not verified, ours are left to the kernel.
    pub checksum: bool,
    /// vnet header: TCP segments may be larger than the MTU both ways.
    pub segmentation: bool,
}

/// Memory for rings. The engine drops the socket that used a ring before it gives the ring back.
pub trait RingMemory {
    /// One ring of `Limits::ring_bytes`, content unspecified; `None` when there is no more.
    fn take(&mut self) -> Option<Ring>;
    /// The ring with this id is not referenced any more.
    fn give(&mut self, id: usize);
}

/// One ring of memory.
#[derive(Debug)]
pub struct Ring {
    /// For [`RingMemory::give`].
    pub id: usize,
    /// The memory.
    pub memory: managed::ManagedSlice<'static, u8>,
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
pub struct Engine {}

#[allow(unused_variables)]
impl Engine {
    /// An engine with no flow. `seed` makes initial sequence numbers.
    pub fn new(limits: Limits, offload: Offload, seed: [u8; 32], rings: Box<dyn RingMemory>) -> Self {
        todo!()
    }
    /// Takes one IP packet (without vnet header).
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        todo!()
    }
    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        todo!()
    }
    /// Writes the next packet for the TUN into `out` (at least 65,535 bytes).
    pub fn poll_packet(&mut self, now: Instant, out: &mut [u8]) -> Option<PacketOut> {
        todo!()
    }
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        todo!()
    }
    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        todo!()
    }
    /// Lets the SYN-ACK go.
    pub fn accept(&mut self, now: Instant, flow: FlowId) -> Result<(), FlowError> {
        todo!()
    }
    /// Refuses a flow that was not accepted yet (an accepted one is aborted).
    pub fn refuse(&mut self, now: Instant, flow: FlowId, why: Refusal) {
        todo!()
    }
    /// Hands received bytes to `take`, contiguous and at most `max`; `take` must use all of them. One copy, made by the caller.
    pub fn read_with(
        &mut self,
        now: Instant,
        flow: FlowId,
        max: usize,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Read, FlowError> {
        todo!()
    }
    /// Copies bytes into the flow's sending ring; returns how many fit. After a short write a `Writable` event will come.
    pub fn write(&mut self, now: Instant, flow: FlowId, bytes: &[u8]) -> Result<usize, FlowError> {
        todo!()
    }
    /// No more bytes will be written (FIN).
    pub fn finish(&mut self, now: Instant, flow: FlowId) -> Result<(), FlowError> {
        todo!()
    }
    /// RST, now.
    pub fn abort(&mut self, now: Instant, flow: FlowId) {
        todo!()
    }
    /// Sends a datagram into the TUN, from `source` (the mesh side) to `destination` (the application).
    pub fn send_datagram(&mut self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        todo!()
    }
    /// Tells the application that its datagram reached a closed port. `original` is the captured key.
    pub fn datagram_unreachable(&mut self, original: FlowKey, payload: &[u8]) {
        todo!()
    }
    /// Live TCP flows.
    pub fn flows(&self) -> usize {
        todo!()
    }
    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        todo!()
    }
}
