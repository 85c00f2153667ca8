//! What leaves the engine: the round over dirty flows, deadlines, replies, and the end of a flow.

use std::time::Duration;

use smoltcp::socket::tcp::State as TcpState;

use super::Engine;
use super::api::{CloseReason, Event, FlowId, Instant, PacketOut};
use super::flow::{Flow, Sending, State};
use super::replies::Reply;

/// Packets that one flow may send before the next one has its turn.
const BURST: usize = 16;
/// An established application that does not acknowledge is given up after this at the earliest: zero-window probes
/// are up to 60 s apart.
const UNANSWERED: Duration = Duration::from_secs(180);
/// smoltcp never wants to be asked again sooner than this after it had nothing to say.
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// Enough for a RST with options.
const RESET_MAX: usize = 128;

impl Engine {
    /// The next segment of the next dirty flow.
    pub(super) fn next_segment(&mut self, out: &mut [u8]) -> Option<PacketOut> {
        while let Some(id) = self.dirty.front().copied() {
            if self.burst < BURST
                && let Some(packet) = self.segment_of(id, out)
            {
                self.burst += 1;
                return Some(packet);
            }
            self.dirty.pop_front();
            let more = self.burst >= BURST;
            self.burst = 0;
            if more {
                self.dirty.push_back(id);
            } else {
                self.retire(id);
            }
        }
        None
    }

    /// Puts a flow in the dirty queue, once.
    pub(super) fn mark_dirty(&mut self, id: FlowId) {
        if let Some(flow) = self.table.get_mut(id)
            && !flow.queued
            && !flow.over
        {
            flow.queued = true;
            self.dirty.push_back(id);
        }
    }

    /// Sets the flow's deadline anew.
    pub(super) fn arm(&mut self, id: FlowId) {
        let (now, linger) = (self.now, self.limits.linger);
        let Some(flow) = self.table.get_mut(id) else { return };
        let patience = flow.patience(linger);
        let timer = match &mut flow.state {
            // Over: smoltcp's own TIME-WAIT timer would clear what was not read yet.
            State::Open(tcp) if !flow.over => tcp.poll_at(now).map(|at| at.max(now + MIN_PAUSE)),
            State::Open(_) | State::Held(_) => None,
        };
        let next = [patience, timer, flow.keep_alive_at()].into_iter().flatten().min();
        self.timers.set(id, &mut flow.deadline, next);
    }

    /// Sends a RST if the SYN was answered, and forgets the flow.
    pub(super) fn reset(&mut self, id: FlowId, reason: CloseReason) {
        let now = self.now;
        if let Some(flow) = self.table.get_mut(id)
            && let State::Open(tcp) = &mut flow.state
            && !flow.over
        {
            let mut bytes = [0; RESET_MAX];
            tcp.abort();
            if let Some(emitted) = tcp.transmit(now, &mut bytes) {
                let bytes = bytes[..emitted.packet.len].to_vec();
                self.push_reply(Reply {
                    bytes,
                    partial_checksum: emitted.packet.partial_checksum,
                });
            }
        }
        self.remove(id, reason);
    }

    /// Forgets a flow; its rings are free again.
    pub(super) fn remove(&mut self, id: FlowId, reason: CloseReason) {
        let Some(mut flow) = self.table.remove(id) else { return };
        self.timers.set(id, &mut flow.deadline, None);
        self.opened -= usize::from(flow.opened.is_some());
        match flow.state {
            State::Held(_) => self.held.remove(&flow.key.destination),
            State::Open(tcp) => tcp.into_rings().into_iter().for_each(|ring| self.rings.give(ring)),
        }
        self.events.push_back(Event::Closed { flow: id, reason });
    }

    /// Queues a packet of ours with all checksums; `None` is one that could not be built.
    pub(super) fn reply(&mut self, packet: Option<Vec<u8>>) {
        self.reply_with(packet, None);
    }

    /// The same, whose checksum the device is to finish.
    pub(super) fn reply_with(&mut self, packet: Option<Vec<u8>>, partial_checksum: Option<(u16, u16)>) {
        match packet {
            Some(bytes) => self.push_reply(Reply {
                bytes,
                partial_checksum,
            }),
            None => self.counters.dropped_replies += 1,
        }
    }

    pub(super) fn push_reply(&mut self, reply: Reply) {
        if !self.replies.push(reply) {
            self.counters.dropped_replies += 1;
        }
    }

    fn segment_of(&mut self, id: FlowId, out: &mut [u8]) -> Option<PacketOut> {
        let now = self.now;
        let flow = self.table.get_mut(id).filter(|flow| !flow.over)?;
        let State::Open(tcp) = &mut flow.state else { return None };
        let packet = tcp.transmit(now, out)?.packet;
        if let Some(opened) = &mut flow.opened {
            opened.heard = now;
        }
        Some(packet)
    }

    /// A flow has nothing more to send now.
    fn retire(&mut self, id: FlowId) {
        let Some(flow) = self.table.get_mut(id) else { return };
        flow.queued = false;
        // Our last ACK left. The link loses nothing and the peer is the local kernel: no need to wait.
        if flow.sending == Sending::FinishLater
            && let State::Open(tcp) = &mut flow.state
            && tcp.try_finish()
        {
            flow.sending = Sending::Finished;
            return self.mark_dirty(id);
        }
        if let State::Open(tcp) = &flow.state
            && tcp.state() == TcpState::TimeWait
            && tcp.is_all_acknowledged()
        {
            flow.over = true;
            return self.settle_over(id);
        }
        self.arm(id);
    }
}

impl Flow {
    /// Until when the flow may go on like this without anything happening; `None` for ever.
    pub(super) fn patience(&self, linger: Duration) -> Option<Instant> {
        let State::Open(tcp) = &self.state else {
            return Some(self.active + linger);
        };
        match tcp.state() {
            TcpState::Established if tcp.unacknowledged() > 0 => Some(self.active + linger.max(UNANSWERED)),
            TcpState::Established => None,
            _ => Some(self.active + linger),
        }
    }
}
