//! The words between the engine and its driver: limits, offloads, ring memory, events, errors, counts.

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
    /// Of all flows those that [`super::Engine::connect`] opened, so that callers leave room for the application's own.
    pub opened: usize,
    /// Bytes of one ring (a flow has two). Power of two, at least 64 KiB.
    pub ring_bytes: usize,
    /// Events that wait to be polled. When there are more, SYNs and datagrams are dropped. (Events of a live flow are
    /// never dropped: an event is not repeated before it was acted on, so at most four of one flow wait.)
    pub events: usize,
    /// A flow that closed on one side only is dropped after this long without a packet; also FIN-WAIT and the like,
    /// one whose application does not acknowledge, and one whose SYN is neither answered nor repeated.
    pub linger: Duration,
}

/// What the TUN device does for us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// vnet header: checksums from the TUN are not verified, ours are left to the kernel.
    pub checksum: bool,
    /// vnet header: TCP segments may be larger than the MTU both ways. Needs `checksum`.
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
    /// The application reset it, or refused what we opened.
    ResetByApplication,
    /// We aborted or refused it.
    Aborted,
    /// An ICMP error answered the SYN of [`super::Engine::connect`].
    Unreachable,
    /// Nothing was heard for too long.
    TimedOut,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A SYN arrived; answer with `accept` or `refuse`.
    Opened { flow: FlowId, key: FlowKey },
    /// The application answered a flow of [`super::Engine::connect`].
    Connected { flow: FlowId },
    /// Bytes, or the end, can be read.
    Readable { flow: FlowId },
    /// There is room to write again after a short write.
    Writable { flow: FlowId },
    /// The flow is over and forgotten; the last event of a flow. With [`CloseReason::Finished`] it comes only after
    /// the end was read.
    Closed { flow: FlowId, reason: CloseReason },
    /// A UDP datagram was captured. `key.source` is the application.
    Datagram { key: FlowKey, payload: bytes::Bytes },
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets_in: u64,
    pub packets_out: u64,
    /// Packets that could not be parsed, with bad checksums, or with impossible options.
    pub malformed: u64,
    /// ICMP and other protocols.
    pub not_ours: u64,
    pub dropped_flow_limit: u64,
    pub dropped_half_open: u64,
    pub dropped_no_memory: u64,
    pub dropped_events_full: u64,
    /// Packets made by us (datagrams, RST, ICMP) that found the queue full, fitted in no packet, or were too many.
    pub dropped_replies: u64,
}

/// One packet to be written to the TUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketOut {
    /// Bytes of the packet at the start of the buffer.
    pub len: usize,
    /// The TCP or UDP checksum field holds the pseudo-header sum only: (csum_start, csum_offset) of the vnet header.
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

/// Why no flow was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// As many flows as [`Limits::flows`] or [`Limits::opened`] live.
    #[error("too many flows")]
    TooMany,
    /// There is no ring left.
    #[error("no memory for one more flow")]
    NoMemory,
    /// Every port that was tried is in use between the two addresses.
    #[error("no free port")]
    NoPort,
    /// One address is IPv4 and the other IPv6, or one is none of a host, or the port is 0.
    #[error("the addresses are not of two hosts of one family")]
    Address,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now; a `Readable` event will come. (Only after this answer: read until it, or until the end.)
    Blocked,
    /// The application finished its side.
    End,
}

/// One flow, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    pub flow: FlowId,
    pub key: FlowKey,
    /// The name of its TCP state, in RFC 9293's words; `HELD` while the SYN is not answered.
    pub state: &'static str,
    /// Bytes that the application sent and that were not read yet.
    pub unread: usize,
    /// Bytes written that the application's kernel did not acknowledge yet.
    pub unacknowledged: usize,
}
