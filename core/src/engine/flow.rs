//! One TCP flow: a tiny smoltcp interface with a single socket, because a shared one walks all its sockets on every packet.

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpListenEndpoint};

use super::rings::Ring;
use super::slot::{Output, Slot};
use super::{CloseReason, FlowError, FlowId, Instant, Offload, Read, clock};
use crate::packet::FlowKey;

/// What all flows of an engine have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) mtu: usize,
    pub(super) offload: Offload,
}

/// See the module.
pub(super) struct TcpFlow {
    pub(super) id: FlowId,
    pub(super) key: FlowKey,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    rings: [usize; 2],
    /// The SYN, kept for quoting in a refusal; `None` once the flow was accepted.
    pub(super) syn: Option<Vec<u8>>,
    pub(super) syn_seq: u32,
    pub(super) deadline: Option<Instant>,
    pub(super) heard: Instant,
    pub(super) queued: bool,
    /// A `Readable` event is out and its reader has not come to the end.
    pub(super) signalled: bool,
    pub(super) wants_room: bool,
    aborted: bool,
    finished: bool,
    ended: bool,
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow")
            .field("id", &self.id)
            .field("key", &self.key)
            .field("state", &self.state())
            .finish()
    }
}

impl TcpFlow {
    /// A flow that listens for exactly this SYN, and holds its SYN-ACK back.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        id: FlowId,
        key: FlowKey,
        syn: &[u8],
        syn_seq: u32,
        [receive, send]: [Ring; 2],
        device: Device,
        seed: u64,
        now: Instant,
    ) -> Self {
        let rings = [receive.id, send.id];
        let mut socket = Socket::new(SocketBuffer::new(receive.memory), SocketBuffer::new(send.memory));
        socket.set_nagle_enabled(false);
        socket.set_tsval_generator(Some(clock::tsval));
        socket.pause_synack(true);
        let local = IpListenEndpoint {
            addr: Some(IpAddress::from(key.destination.ip())),
            port: key.destination.port(),
        };
        // Cannot fail: the socket is new and the parser refused port 0.
        let _ = socket.listen(local);

        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut queue = Vec::new();
        let mut slot = slot(device, None, Output::Queue(&mut queue));
        let mut interface = Interface::new(config, &mut slot, smol(now));
        interface.set_any_ip(true);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            id,
            key,
            interface,
            sockets,
            handle,
            rings,
            syn: Some(syn.to_vec()),
            syn_seq,
            deadline: None,
            heard: now,
            queued: false,
            signalled: false,
            wants_room: false,
            aborted: false,
            finished: false,
            ended: false,
        }
    }

    /// Drops the socket, and only then tells which rings are free.
    pub(super) fn into_rings(self) -> [usize; 2] {
        let rings = self.rings;
        drop(self);
        rings
    }

    /// Takes a packet of this flow; replies go to `replies`.
    pub(super) fn ingress(&mut self, now: Instant, packet: &[u8], device: Device, replies: &mut Vec<Vec<u8>>) {
        self.heard = now;
        let mut slot = slot(device, Some(packet), Output::Queue(replies));
        let result = self
            .interface
            .poll_ingress_single(smol(now), &mut slot, &mut self.sockets);
        if !matches!(result, PollIngressSingleResult::None) {
            self.ended |= matches!(
                self.state(),
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait
            );
            self.close_if_finished();
        }
    }

    /// Writes one packet into `out`: its bytes, and the segment size when the kernel is to split it.
    pub(super) fn egress(&mut self, now: Instant, out: &mut [u8], device: Device) -> Option<(usize, Option<u16>)> {
        if self.syn.is_some() {
            return None;
        }
        let mut slot = slot(device, None, Output::Buffer(out, None));
        self.interface.poll_egress(smol(now), &mut slot, &mut self.sockets);
        match slot.out {
            Output::Buffer(_, written) => written,
            Output::Queue(_) => None,
        }
    }

    /// When smoltcp wants to be served again. A paused socket says "now" for ever, so it is not asked.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        if self.syn.is_some() {
            return None;
        }
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        Some(Instant::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    pub(super) fn accept(&mut self) {
        self.syn = None;
        self.socket_mut().pause_synack(false);
    }

    pub(super) fn read(&mut self, max: usize, take: &mut dyn FnMut(&[u8])) -> Result<Read, FlowError> {
        let received = self.socket_mut().recv(|ring| {
            let length = ring.len().min(max);
            if length > 0 {
                take(&ring[..length]);
            }
            (length, length)
        });
        match received {
            Ok(0) => Ok(Read::Blocked),
            Ok(length) => Ok(Read::Bytes(length)),
            Err(RecvError::Finished) => Ok(Read::End),
            Err(RecvError::InvalidState) if self.is_opening() => Ok(Read::Blocked),
            Err(RecvError::InvalidState) => Err(FlowError::Gone),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, FlowError> {
        if self.finished {
            return Err(FlowError::Finished);
        }
        if self.is_opening() {
            self.wants_room = true;
            return Ok(0);
        }
        let written = self.socket_mut().send_slice(bytes).map_err(|_| FlowError::Gone)?;
        self.wants_room = written < bytes.len();
        Ok(written)
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.close_if_finished();
    }

    /// In SYN-RECEIVED smoltcp would send the FIN instead of the SYN-ACK, so closing waits for the end of the handshake.
    fn close_if_finished(&mut self) {
        if self.finished && !self.is_opening() {
            self.socket_mut().close();
        }
    }

    pub(super) fn abort(&mut self) {
        self.aborted = true;
        self.syn = None;
        let socket = self.socket_mut();
        socket.pause_synack(false);
        socket.abort();
    }

    /// Bytes, the end, or the loss of the flow can be learnt by reading.
    pub(super) fn is_readable(&self) -> bool {
        let socket = self.socket();
        socket.can_recv() || (self.ended && !socket.may_recv())
    }

    /// Worth waking a writer: a quarter of the ring is free, or all is sent.
    pub(super) fn has_room(&self) -> bool {
        let socket = self.socket();
        socket.may_send() && socket.send_capacity() - socket.send_queue() >= socket.send_capacity() / 4
    }

    /// Whether nothing is left to be done, once all packets have left; and why.
    pub(super) fn over(&self) -> Option<CloseReason> {
        let socket = self.socket();
        match socket.state() {
            // The RST of an abort is still to be sent.
            State::Closed if self.aborted && socket.remote_endpoint().is_some() => None,
            State::Closed if self.aborted => Some(CloseReason::Aborted),
            // What the application sent before it finished is still to be read.
            State::Closed | State::TimeWait if self.finished && self.ended && socket.can_recv() => None,
            State::Closed if self.finished && self.ended => Some(CloseReason::Finished),
            // A RST in SYN-RECEIVED puts a socket that listened back to LISTEN.
            State::Closed | State::Listen => Some(CloseReason::ResetByApplication),
            // The link loses nothing and the peer is the local kernel: no need to wait.
            State::TimeWait => Some(CloseReason::Finished),
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => None,
        }
    }

    /// We finished, all is acknowledged, and the application is silent.
    pub(super) fn is_lingering(&self) -> bool {
        self.state() == State::FinWait2
    }

    fn is_opening(&self) -> bool {
        self.state() == State::SynReceived
    }

    fn state(&self) -> State {
        self.socket().state()
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

fn slot<'a>(device: Device, received: Option<&'a [u8]>, out: Output<'a>) -> Slot<'a> {
    Slot {
        received,
        out,
        mtu: device.mtu,
        offload: device.offload,
    }
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}
