//! One TCP flow: a tiny smoltcp interface with one socket, and what must be known about it from outside.
//!
//! smoltcp keeps its sequence numbers to itself. They are followed here from the segments that pass, because two
//! decisions need them: whether our last ACK left, and whether a segment fits where smoltcp would put it.

use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpListenEndpoint};

use super::api::{Instant, Offload, Read, Ring};
use super::segment::{self, Emitted};
use super::slot::{Capabilities, Slot};
use crate::packet::build::Control;
use crate::packet::{Flags, IPV4_LEN, IPV6_LEN, Tcp};

mod active;
mod admit;

pub(super) use admit::{Admission, Change};

/// Bytes of the largest segment that smoltcp sends in direct answer to one: headers with all options.
const ANSWER_MAX: usize = 128;
/// smoltcp's default, and RFC 9293 3.7.1 (MUST-15).
const DEFAULT_MSS: u16 = 536;
/// RFC 7323 2.3.
const MAX_SHIFT: u8 = 14;
/// smoltcp's own floor for what a SYN may ask.
const MIN_MSS: u16 = 48;

/// What the flows of one engine have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) capabilities: Capabilities,
    pub(super) offload: Offload,
}

/// One answered TCP flow.
pub(super) struct TcpFlow {
    setting: Setting,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    rings: [usize; 2],
    /// The application's initial sequence number.
    remote_start: u32,
    /// Bytes that were read, modulo 2^32.
    read: u32,
    /// How far we shift our window fields.
    window_shift: u8,
    /// What both sides allow in one segment, before options.
    mss: u16,
    timestamp_offset: u32,
    /// How far the application shifts its window fields.
    remote_shift: u8,
    /// Bytes that were written, modulo 2^32.
    written: u32,
    sent: Option<Sent>,
    remote: Option<Remote>,
    /// The sequence number of the SYN that we sent, of a flow that we opened.
    syn: Option<u32>,
}

/// What the application's last segment told smoltcp.
#[derive(Clone, Copy, Debug)]
struct Remote {
    acknowledged: u32,
    /// Where we must stop.
    right_edge: u32,
}

/// What the last segment of ours said.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// The sequence number of the first byte.
    start: u32,
    /// The highest sequence number sent, plus one.
    end: u32,
    /// The same, with probes of a closed window, which the application may have dropped.
    reached: u32,
    acknowledgement: u32,
    /// Where smoltcp believes that the application must stop.
    right_edge: u32,
}

/// A segment that smoltcp sent in direct answer.
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) emitted: Emitted,
}

impl TcpFlow {
    /// A flow in SYN-RECEIVED, made from the SYN that opened it. `None` when smoltcp would not have the SYN; the rings
    /// are free again then.
    pub(super) fn new(
        now: Instant,
        setting: Setting,
        syn: &[u8],
        tcp: &Tcp<'_>,
        local: SocketAddr,
        rings: [Ring; 2],
        random: u64,
    ) -> Option<Self> {
        let [rx, tx] = rings;
        let ids = [rx.id, tx.id];
        // For a SYN that carries the option; without it neither side scales.
        let window_shift = tcp.window_scale().map_or(0, |_| window_shift(rx.memory.len()));
        let mut socket = socket([rx, tx]);
        socket
            .listen(IpListenEndpoint {
                addr: Some(local.ip().into()),
                port: local.port(),
            })
            .ok()?;

        let mut answer = [0; ANSWER_MAX];
        let mut slot = Slot::new(setting.capabilities, Some(syn), &mut answer);
        let mut interface = interface(now, random, &mut slot);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        interface.poll_ingress_single(smol(now), &mut slot, &mut sockets);

        let remote_mss = remote_mss(tcp);
        let flow = Self {
            setting,
            interface,
            sockets,
            handle,
            rings: ids,
            remote_start: tcp.sequence(),
            read: 0,
            window_shift,
            mss: local_mss(setting, local).min(remote_mss),
            // The upper half: smoltcp's initial sequence number comes from all of it, through its own generator.
            timestamp_offset: u32::try_from(random >> 32).unwrap_or(0),
            remote_shift: tcp.window_scale().map_or(0, |shift| shift.min(MAX_SHIFT)),
            written: 0,
            sent: None,
            remote: None,
            syn: None,
        };
        (flow.state() == State::SynReceived).then_some(flow)
    }

    /// Where in TCP's states it is. LISTEN means that a RST met SYN-RECEIVED.
    pub(super) fn state(&self) -> State {
        self.socket().state()
    }

    /// The initial sequence number of the application.
    pub(super) fn remote_start(&self) -> u32 {
        self.remote_start
    }

    /// Whether the application finished its side.
    pub(super) fn is_end_received(&self) -> bool {
        matches!(
            self.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        )
    }

    /// Whether both sides finished, and all but perhaps our FIN arrived.
    pub(super) fn is_all_but_over(&self) -> bool {
        matches!(self.state(), State::LastAck | State::Closing | State::TimeWait) && self.unacknowledged() == 0
    }

    /// Whether everything that the application sent was acknowledged on the wire.
    pub(super) fn is_all_acknowledged(&self) -> bool {
        self.sent
            .is_some_and(|sent| sent.acknowledgement == self.receive_next())
    }

    /// Bytes that wait to be read.
    pub(super) fn unread(&self) -> usize {
        self.socket().recv_queue()
    }

    /// Bytes that the application did not acknowledge yet.
    pub(super) fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    /// Room in the sending ring, and its size.
    pub(super) fn room(&self) -> (usize, usize) {
        let capacity = self.socket().send_capacity();
        (capacity - self.socket().send_queue(), capacity)
    }

    /// Whether bytes can be written in this state.
    pub(super) fn may_write(&self) -> bool {
        self.socket().may_send()
    }

    /// Gives an admitted packet to smoltcp. `window` is the field that smoltcp sees.
    pub(super) fn receive(&mut self, now: Instant, packet: &[u8], tcp: &Tcp<'_>, window: u16) -> Option<Answer> {
        if self.state() == State::SynSent {
            self.learn(tcp);
        } else {
            self.note(tcp, window);
        }
        let mut answer = [0; ANSWER_MAX];
        let mut slot = Slot::new(self.setting.capabilities, Some(packet), &mut answer);
        self.interface
            .poll_ingress_single(smol(now), &mut slot, &mut self.sockets);
        let len = slot.written()?;
        let bytes = answer.get_mut(..len)?;
        let emitted = self.finish_segment(now, bytes)?;
        Some(Answer {
            bytes: bytes.to_vec(),
            emitted,
        })
    }

    /// Writes the next segment into `out`, if there is one to send.
    pub(super) fn transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Emitted> {
        let mut slot = Slot::new(self.setting.capabilities, None, out);
        self.interface.poll_egress(smol(now), &mut slot, &mut self.sockets);
        let len = slot.written()?;
        self.finish_segment(now, out.get_mut(..len)?)
    }

    /// When smoltcp wants to be asked again.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        Some(Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    /// Hands contiguous received bytes to `take`.
    pub(super) fn read_with(&mut self, max: usize, take: &mut dyn FnMut(&[u8])) -> Read {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        if !socket.can_recv() {
            let ended = matches!(
                socket.state(),
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
            );
            return if ended { Read::End } else { Read::Blocked };
        }
        let read = socket.recv(|bytes| {
            let bytes = &bytes[..bytes.len().min(max)];
            take(bytes);
            (bytes.len(), bytes.len())
        });
        let read = read.unwrap_or(0);
        self.read = self.read.wrapping_add(u32::try_from(read).unwrap_or(0));
        Read::Bytes(read)
    }

    /// Copies bytes into the sending ring; how many fitted.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let written = self.socket_mut().send_slice(bytes).unwrap_or(0);
        self.written = self.written.wrapping_add(u32::try_from(written).unwrap_or(0));
        written
    }

    /// FIN, after what was written. False when it must be tried again: before the handshake is done, and, when the
    /// application finished first, before all was sent. (smoltcp does not see window updates in LAST-ACK.)
    pub(super) fn try_finish(&mut self) -> bool {
        let all_sent = self
            .sent
            .is_some_and(|sent| sent.reached == sent.start.wrapping_add(self.written));
        let closed = self
            .remote
            .is_none_or(|remote| remote.acknowledged == remote.right_edge);
        let may = match self.state() {
            State::Established => true,
            State::CloseWait => self.unacknowledged() == 0 || all_sent && !closed,
            _ => false,
        };
        if may {
            self.socket_mut().close();
        }
        may
    }

    /// RST, at the next `transmit`.
    pub(super) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// The ACK that answers a SYN on a live connection (RFC 5961 4.2).
    pub(super) fn challenge(&self) -> Option<Control> {
        let sent = self.sent?;
        let window = u16::try_from((self.socket().recv_capacity() - self.unread()) >> self.window_shift);
        Some(Control {
            flags: Flags::ACK,
            sequence: sent.end,
            acknowledgement: sent.acknowledgement,
            window: window.unwrap_or(u16::MAX),
        })
    }

    /// Ends it; its rings are not referenced any more.
    pub(super) fn into_rings(self) -> [usize; 2] {
        self.rings
    }

    /// The sequence number that we expect next from the application.
    fn receive_next(&self) -> u32 {
        let unread = u32::try_from(self.unread()).unwrap_or(0);
        let control = 1 + u32::from(self.is_end_received());
        self.remote_start
            .wrapping_add(control)
            .wrapping_add(self.read)
            .wrapping_add(unread)
    }

    /// Makes a segment of smoltcp's ready, and remembers what it said.
    fn finish_segment(&mut self, now: Instant, bytes: &mut [u8]) -> Option<Emitted> {
        let millis = u32::try_from(now.as_millis() & u128::from(u32::MAX)).unwrap_or(0);
        let timestamp = millis.wrapping_add(self.timestamp_offset);
        let emitted = segment::finish(bytes, timestamp, self.setting.offload, self.mss)?;
        if emitted.flags.0 & (Flags::SYN | Flags::ACK) == Flags::SYN {
            self.syn = Some(emitted.sequence_end.wrapping_sub(1));
        }
        if emitted.flags.has(Flags::ACK) {
            let end = emitted.sequence_end;
            // The first is the SYN-ACK, or answers one, and may carry data then.
            let start = end
                .wrapping_sub(u32::try_from(emitted.payload).unwrap_or(0))
                .wrapping_sub(emitted.flags.has(Flags::FIN).into());
            let before = self.sent.unwrap_or(Sent {
                start,
                end: start,
                reached: start,
                acknowledgement: 0,
                right_edge: 0,
            });
            let reached = later(before.reached, end);
            let end = if self.is_probe(&emitted) {
                before.end
            } else {
                later(before.end, end)
            };
            let window = u32::from(emitted.window) << self.window_shift;
            let right_edge = emitted.acknowledgement.wrapping_add(window);
            self.sent = Some(Sent {
                start: before.start,
                end,
                reached,
                acknowledgement: emitted.acknowledgement,
                right_edge,
            });
        }
        Some(emitted)
    }

    /// Whether a segment is the byte that asks whether a closed window is still closed (RFC 9293 3.8.6.1).
    fn is_probe(&self, emitted: &Emitted) -> bool {
        emitted.payload == 1
            && !emitted.flags.has(Flags::FIN)
            && self
                .remote
                .is_some_and(|remote| distance(remote.right_edge, emitted.sequence_end) > 0)
    }

    /// Remembers what a segment tells smoltcp about our side.
    fn note(&mut self, tcp: &Tcp<'_>, window: u16) {
        let acknowledged = tcp.acknowledgement();
        let fits = self.sent.is_some_and(|sent| distance(sent.reached, acknowledged) <= 0);
        let newer = self
            .remote
            .is_none_or(|remote| distance(remote.acknowledged, acknowledged) >= 0);
        if tcp.flags().has(Flags::ACK) && !tcp.flags().has(Flags::RST) && fits && newer {
            let right_edge = acknowledged.wrapping_add(u32::from(window) << self.remote_shift);
            self.remote = Some(Remote {
                acknowledged,
                right_edge,
            });
        }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow")
            .field("state", &self.state())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

/// How far `to` is ahead of `from` in sequence space.
fn distance(from: u32, to: u32) -> i64 {
    i64::from(to.wrapping_sub(from).cast_signed())
}

/// The later of two sequence numbers.
fn later(a: u32, b: u32) -> u32 {
    if distance(a, b) > 0 { b } else { a }
}

/// A socket on these rings, as every flow has it.
fn socket(rings: [Ring; 2]) -> Socket<'static> {
    let [rx, tx] = rings;
    let mut socket = Socket::new(SocketBuffer::new(rx.memory), SocketBuffer::new(tx.memory));
    socket.set_nagle_enabled(false);
    socket.set_tsval_generator(Some(no_clock));
    socket
}

/// An interface that takes every destination for its own.
fn interface(now: Instant, random: u64, slot: &mut Slot<'_>) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = random;
    let mut interface = Interface::new(config, slot, smol(now));
    interface.set_any_ip(true);
    interface
}

/// How far the window fields of a ring of so many bytes are shifted: smoltcp's formula.
fn window_shift(ring: usize) -> u8 {
    let bits = usize::BITS - ring.leading_zeros();
    u8::try_from(bits.saturating_sub(16)).unwrap_or(MAX_SHIFT)
}

/// The largest segment, before options, that the device takes towards this address's family.
fn local_mss(setting: Setting, address: SocketAddr) -> u16 {
    let headers = if address.is_ipv4() { IPV4_LEN } else { IPV6_LEN } + 20;
    setting.capabilities.mtu - u16::try_from(headers).unwrap_or(0)
}

/// The largest that the application's SYN allows.
fn remote_mss(tcp: &Tcp<'_>) -> u16 {
    let mss = tcp.max_segment_size().filter(|mss| *mss != 0);
    mss.unwrap_or(DEFAULT_MSS).max(MIN_MSS)
}

/// smoltcp's clock; the value is put in later, see `segment`.
fn no_clock() -> u32 {
    0
}

/// Any time that a caller can mean, in smoltcp's microseconds, far enough from the end for timers to be added.
fn smol(now: Instant) -> SmolInstant {
    let micros = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    SmolInstant::from_micros(micros.min(i64::MAX / 4))
}
