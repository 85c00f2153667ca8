//! What smoltcp may see of a segment: the border that keeps it from panicking, hanging, or ending a stream early.

use super::{Sent, State, TcpFlow, distance};
use crate::packet::{Flags, Tcp};

/// What may become of an incoming segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Admission {
    /// smoltcp may see it.
    Whole,
    /// smoltcp may see it so changed.
    Changed(Change),
    /// smoltcp must not see it.
    Drop,
}

/// How an incoming segment is changed before smoltcp sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Change {
    /// With no more data than this many bytes.
    pub(in crate::engine) payload: usize,
    /// Without these flags.
    pub(in crate::engine) clear: u8,
    /// With this window field.
    pub(in crate::engine) window: Option<u16>,
}

impl TcpFlow {
    /// Decides about a segment before smoltcp sees it.
    ///
    /// smoltcp 0.14 has four weak points here. It reads its own SYN-ACK's window as if it were scaled, and so would
    /// accept more than its ring holds, and panic. It takes a FIN whose data reaches past the window, after cutting
    /// that data off: the stream would end early. And it stops its retransmission timer when the window closes over
    /// bytes in flight, and when the ACK before a lone FIN is repeated: if those are lost, it hangs.
    pub(in crate::engine) fn admit(&self, tcp: &Tcp<'_>) -> Admission {
        if self.state() == State::SynSent {
            return self.admit_answer(tcp);
        }
        let Some(sent) = self.sent else {
            // Our SYN-ACK, or our answer to one, did not leave: nothing but a RST can be meant for it.
            return if tcp.flags().has(Flags::RST) {
                Admission::Whole
            } else {
                Admission::Drop
            };
        };
        if self.is_lone_fin_repeated(tcp, sent) {
            return Admission::Drop;
        }
        let window = self.held_open(tcp, sent);
        let whole = Change {
            payload: tcp.payload().len(),
            clear: 0,
            window,
        };
        let Some(change) = self.fitted(tcp, sent, whole) else {
            return Admission::Drop;
        };
        if change == (Change { window: None, ..whole }) {
            Admission::Whole
        } else {
            Admission::Changed(change)
        }
    }

    /// Cuts a segment's data where smoltcp might not; `None` when nothing of it may be seen.
    fn fitted(&self, tcp: &Tcp<'_>, sent: Sent, whole: Change) -> Option<Change> {
        let next = self.receive_next();
        let start = distance(next, tcp.sequence());
        let end = start + i64::try_from(whole.payload).unwrap_or(i64::MAX);
        let edge = distance(next, sent.right_edge);
        let room = i64::try_from(self.socket().recv_capacity() - self.unread()).unwrap_or(i64::MAX);
        let allowed = edge.min(room);
        let overestimated = edge > room;
        if whole.payload == 0 || end <= allowed {
            return Some(whole);
        }
        if overestimated && start >= allowed {
            return None;
        }
        if overestimated || (tcp.flags().has(Flags::FIN) && start < allowed) {
            let payload = usize::try_from(allowed - start).unwrap_or(0);
            return Some(Change {
                payload,
                clear: Flags::FIN | Flags::PSH,
                ..whole
            });
        }
        Some(whole)
    }

    /// Whether this repeats the ACK before our FIN, with nothing but that in flight.
    fn is_lone_fin_repeated(&self, tcp: &Tcp<'_>, sent: Sent) -> bool {
        tcp.flags().0 == Flags::ACK
            && tcp.payload().is_empty()
            && self.unacknowledged() == 0
            && distance(tcp.acknowledgement(), sent.end) == 1
            && tcp.acknowledgement() == sent.start.wrapping_add(self.written)
    }

    /// The window field for a segment whose window closes over bytes in flight: just open for them. Nothing new will
    /// be sent into it.
    fn held_open(&self, tcp: &Tcp<'_>, sent: Sent) -> Option<u16> {
        let flags = tcp.flags();
        let flight = distance(tcp.acknowledgement(), sent.end);
        let window = i64::from(tcp.window()) << self.remote_shift;
        if !flags.has(Flags::ACK) || flags.has(Flags::RST) || window >= flight {
            return None;
        }
        // An acknowledgement from before what is in the ring is none that smoltcp would take.
        let unacknowledged = i64::try_from(self.unacknowledged()).unwrap_or(i64::MAX);
        if flight > unacknowledged + 1 {
            return None;
        }
        let units = (flight + (1 << self.remote_shift) - 1) >> self.remote_shift;
        Some(u16::try_from(units).unwrap_or(u16::MAX))
    }
}
