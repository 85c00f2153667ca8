//! What an incoming packet or deadline does: which flow it belongs to, and what it changes there.

use smoltcp::socket::tcp::State as TcpState;

use super::api::{CloseReason, Event, FlowId};
use super::flow::{Held, Sending, State};
use super::replies::Reply;
use super::tcp::{Admission, Answer, Change};
use super::{Engine, build};
use crate::packet::{Flags, FlowKey, Packet, Tcp};

/// Payload bytes of datagrams that may wait to be polled.
const DATAGRAM_BYTES: usize = 8 << 20;

impl Engine {
    /// A datagram becomes an event.
    pub(super) fn handle_datagram(&mut self, key: FlowKey, payload: &[u8]) {
        if self.events.len() >= self.limits.events || self.datagram_bytes + payload.len() > DATAGRAM_BYTES {
            self.counters.dropped_events_full += 1;
            return;
        }
        self.datagram_bytes += payload.len();
        let payload = bytes::Bytes::copy_from_slice(payload);
        self.events.push_back(Event::Datagram { key, payload });
    }

    /// A segment goes to its flow, opens one, or is answered as a stray.
    pub(super) fn handle_segment(&mut self, key: FlowKey, packet: &Packet<'_>, tcp: &Tcp<'_>) {
        if !tcp.options_valid() {
            self.counters.malformed += 1;
            return;
        }
        let Some(id) = self.table.find(&key) else {
            return if tcp.opens() {
                self.open(key, packet, tcp)
            } else {
                self.answer_stray(&key, tcp)
            };
        };
        let Some(flow) = self.table.get(id) else { return };
        match &flow.state {
            State::Held(held) => {
                let same = held.sequence == tcp.sequence();
                self.handle_while_held(id, key, packet, tcp, same);
            }
            State::Open(_) if tcp.opens() => self.handle_second_syn(id, key, packet, tcp),
            State::Open(_) => self.handle_established(id, packet, tcp),
        }
    }

    /// What was waited for did not come: the flow is over, or smoltcp has a timer to serve.
    pub(super) fn handle_deadline(&mut self, id: FlowId) {
        let now = self.now;
        let linger = self.limits.linger;
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.deadline = None;
        if flow.patience(linger).is_some_and(|at| at <= now) {
            return self.reset(id, CloseReason::TimedOut);
        }
        self.keep_alive(id);
        self.mark_dirty(id);
    }

    /// Holds a new SYN, if the limits allow one more.
    fn open(&mut self, key: FlowKey, packet: &Packet<'_>, tcp: &Tcp<'_>) {
        if self.table.len() >= self.limits.flows {
            self.counters.dropped_flow_limit += 1;
            return;
        }
        let of_destination = self.held.of(&key.destination);
        if self.held.total() >= self.limits.half_open || of_destination >= self.limits.half_open_per_destination {
            self.counters.dropped_half_open += 1;
            return;
        }
        if self.events.len() >= self.limits.events {
            self.counters.dropped_events_full += 1;
            return;
        }
        let held = Held {
            syn: headers(packet, tcp),
            sequence: tcp.sequence(),
        };
        let id = self.table.insert(self.now, key, State::Held(held));
        self.held.add(key.destination);
        self.events.push_back(Event::Opened { flow: id, key });
        self.arm(id);
    }

    /// A segment on a tuple whose SYN is not answered. Nothing but the SYN again, or a RST, can be meant.
    fn handle_while_held(&mut self, id: FlowId, key: FlowKey, packet: &Packet<'_>, tcp: &Tcp<'_>, same: bool) {
        if tcp.opens() && same {
            let now = self.now;
            if let Some(flow) = self.table.get_mut(id)
                && let State::Held(held) = &mut flow.state
            {
                // The later copy has the later timestamp, which our SYN-ACK is to echo.
                held.syn = headers(packet, tcp);
                flow.active = now;
            }
            self.arm(id);
        } else if tcp.opens() {
            self.remove(id, CloseReason::ResetByApplication);
            self.open(key, packet, tcp);
        } else if tcp.flags().has(Flags::RST)
            && let Some(flow) = self.table.get(id)
            && let State::Held(held) = &flow.state
            && [held.sequence, held.sequence.wrapping_add(1)].contains(&tcp.sequence())
        {
            self.remove(id, CloseReason::ResetByApplication);
        }
    }

    /// A SYN on the tuple of an answered flow: a repetition, or the kernel uses the port again.
    fn handle_second_syn(&mut self, id: FlowId, key: FlowKey, packet: &Packet<'_>, tcp: &Tcp<'_>) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Open(socket) = &mut flow.state else { return };
        let same = socket.remote_start() == tcp.sequence();
        match socket.state() {
            // Our SYN-ACK is repeated by its own timer.
            TcpState::SynReceived if same => {}
            // Ours was first; the application does not open towards an address that opens towards it.
            TcpState::SynSent => {}
            TcpState::SynReceived | TcpState::Listen | TcpState::Closed => {
                self.remove(id, CloseReason::ResetByApplication);
                self.open(key, packet, tcp);
            }
            // Both sides finished, and the kernel has forgotten the connection, or it would not use the port again.
            TcpState::LastAck | TcpState::Closing | TcpState::TimeWait if !same => {
                flow.over = true;
                self.settle_over(id);
                self.open(key, packet, tcp);
            }
            // RFC 5961 4.2: who really lost the connection answers this with a RST, and then repeats the SYN.
            _ => {
                let challenge = socket.challenge();
                if self.budget.take(self.now) {
                    self.reply(challenge.and_then(|control| build::segment(key.destination, key.source, control)));
                }
            }
        }
    }

    /// A segment of an answered flow goes to smoltcp, as far as it may.
    fn handle_established(&mut self, id: FlowId, packet: &Packet<'_>, tcp: &Tcp<'_>) {
        let now = self.now;
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Open(socket) = &mut flow.state else { return };
        if let Some(opened) = &mut flow.opened {
            opened.heard = now;
        }
        if flow.opened.is_none() || socket.is_news(tcp) {
            flow.active = now;
        }
        // RFC 9293 3.10.7.4: after both FINs a RST only ends it sooner.
        let reset = tcp.flags().has(Flags::RST) && !socket.is_all_but_over();
        let answer = match socket.admit(tcp) {
            Admission::Drop => return,
            Admission::Whole if !packet.has_extensions() => socket.receive(now, packet.bytes(), tcp, tcp.window()),
            admission => {
                let change = match admission {
                    Admission::Changed(change) => change,
                    _ => Change {
                        payload: usize::MAX,
                        clear: 0,
                        window: None,
                    },
                };
                build::trimmed(packet, tcp, change.payload, change.clear, &mut self.scratch);
                let window = change.window.unwrap_or_else(|| tcp.window());
                build::set_window(&mut self.scratch, window);
                socket.receive(now, &self.scratch, tcp, window)
            }
        };
        if flow.sending == Sending::FinishLater && socket.try_finish() {
            flow.sending = Sending::Finished;
        }
        if let Some(Answer { bytes, emitted }) = answer {
            self.push_reply(Reply {
                bytes,
                partial_checksum: emitted.packet.partial_checksum,
            });
        }
        self.settle(id, reset);
    }

    /// Draws the conclusions from what a packet changed.
    fn settle(&mut self, id: FlowId, reset: bool) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let State::Open(socket) = &flow.state else { return };
        match socket.state() {
            // A RST in SYN-RECEIVED puts smoltcp's socket back to LISTEN, where nothing of ours may be.
            TcpState::Listen => return self.remove(id, CloseReason::ResetByApplication),
            TcpState::Closed if reset => return self.remove(id, CloseReason::ResetByApplication),
            TcpState::Closed => flow.over = true,
            _ => {}
        }
        if let Some(opened) = &mut flow.opened
            && !opened.answered
            && socket.state() != TcpState::SynSent
        {
            opened.answered = true;
            self.events.push_back(Event::Connected { flow: id });
        }
        if !flow.readable_told && (socket.unread() > 0 || socket.is_end_received() || flow.over) {
            flow.readable_told = true;
            self.events.push_back(Event::Readable { flow: id });
        }
        let (room, capacity) = socket.room();
        if flow.wants_room && socket.may_write() && room >= capacity / 4 {
            flow.wants_room = false;
            self.events.push_back(Event::Writable { flow: id });
        }
        if flow.over {
            return self.settle_over(id);
        }
        self.mark_dirty(id);
    }

    /// The connection is over on the wire; what is left is that the reader sees its end.
    pub(super) fn settle_over(&mut self, id: FlowId) {
        self.table.detach(id);
        if self.table.get(id).is_some_and(|flow| flow.end_read) {
            return self.remove(id, CloseReason::Finished);
        }
        self.arm(id);
    }

    /// A segment of no flow is answered by RST, so that the kernel forgets the connection too.
    fn answer_stray(&mut self, key: &FlowKey, tcp: &Tcp<'_>) {
        let Some(reset) = build::reset(key, tcp) else { return };
        if !self.budget.take(self.now) {
            self.counters.dropped_replies += 1;
            return;
        }
        self.reply(Some(reset));
    }
}

/// The headers of a SYN, without data and IPv6 extensions, as smoltcp is to see them.
fn headers(packet: &Packet<'_>, tcp: &Tcp<'_>) -> Vec<u8> {
    let mut syn = Vec::new();
    build::trimmed(packet, tcp, 0, 0, &mut syn);
    syn
}
