//! What is peculiar to a flow that we open: the SYN, what may answer it, and the sign of life of one that is silent.

use std::net::SocketAddr;

use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp::State;

use super::{
    ANSWER_MAX, Admission, Change, Instant, MAX_SHIFT, Remote, Ring, Setting, Slot, TcpFlow, interface, local_mss,
    remote_mss, socket, window_shift,
};
use crate::packet::build::Control;
use crate::packet::{Flags, Tcp};

impl TcpFlow {
    /// A flow in SYN-SENT, from `local`, the far side, to `remote`, the application. `None` when smoltcp would not have
    /// these addresses; the rings are free again then.
    pub(in crate::engine) fn connect(
        now: Instant,
        setting: Setting,
        [local, remote]: [SocketAddr; 2],
        rings: [Ring; 2],
        random: u64,
        timestamp_offset: u32,
    ) -> Option<Self> {
        let ids = [rings[0].id, rings[1].id];
        let window_shift = window_shift(rings[0].memory.len());
        let mut socket = socket(rings);
        let mut nothing = [0; ANSWER_MAX];
        let mut slot = Slot::new(setting.capabilities, None, &mut nothing);
        let mut interface = interface(now, random, &mut slot);
        socket.connect(interface.context(), remote, local).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self {
            setting,
            interface,
            sockets,
            handle,
            rings: ids,
            // What the answer to the SYN says stands here when it came.
            remote_start: 0,
            read: 0,
            window_shift,
            mss: local_mss(setting, local),
            timestamp_offset,
            remote_shift: 0,
            written: 0,
            sent: None,
            remote: None,
            syn: None,
        })
    }

    /// Whether a segment answers our SYN. smoltcp answers others with a RST that would fit another connection of the same
    /// tuple, if the kernel had one; they are left alone, and the SYN is repeated until someone gives up.
    pub(super) fn admit_answer(&self, tcp: &Tcp<'_>) -> Admission {
        const REFUSAL: u8 = Flags::RST | Flags::ACK;
        const ANSWER: u8 = Flags::SYN | Flags::ACK;
        let control = tcp.flags().0 & (Flags::SYN | Flags::ACK | Flags::RST | Flags::FIN);
        let fits = self.syn.is_some_and(|syn| tcp.acknowledgement() == syn.wrapping_add(1));
        match control {
            _ if !fits => Admission::Drop,
            REFUSAL => Admission::Whole,
            // Data would be cut off all the same; it comes again.
            ANSWER => Admission::Changed(Change {
                payload: 0,
                clear: Flags::PSH,
                window: None,
            }),
            _ => Admission::Drop,
        }
    }

    /// Takes from the SYN-ACK what smoltcp keeps to itself.
    pub(super) fn learn(&mut self, tcp: &Tcp<'_>) {
        if !tcp.flags().has(Flags::SYN) {
            return;
        }
        self.remote_start = tcp.sequence();
        match tcp.window_scale() {
            Some(shift) => self.remote_shift = shift.min(MAX_SHIFT),
            None => self.window_shift = 0,
        }
        self.mss = self.mss.min(remote_mss(tcp));
        // RFC 7323 2.2: the window of a SYN is never scaled.
        let acknowledged = tcp.acknowledgement();
        self.remote = Some(Remote {
            acknowledged,
            right_edge: acknowledged.wrapping_add(tcp.window().into()),
        });
    }

    /// Whether our SYN has this sequence number, and nothing answered it.
    pub(in crate::engine) fn is_waiting_with(&self, sequence: u32) -> bool {
        self.state() == State::SynSent && self.syn == Some(sequence)
    }

    /// Whether a segment says anything that the last one did not: an answer to a sign of life does not.
    pub(in crate::engine) fn is_news(&self, tcp: &Tcp<'_>) -> bool {
        if tcp.flags().0 != Flags::ACK || !tcp.payload().is_empty() {
            return true;
        }
        let acknowledged = tcp.acknowledgement();
        let right_edge = acknowledged.wrapping_add(u32::from(tcp.window()) << self.remote_shift);
        self.remote
            .is_none_or(|remote| (remote.acknowledged, remote.right_edge) != (acknowledged, right_edge))
    }

    /// A segment that says nothing new and is answered (RFC 9293 3.8.4): one before what is expected, without data. It tells
    /// the window that was told last, because smoltcp does not hear of it.
    pub(in crate::engine) fn sign_of_life(&self) -> Option<Control> {
        let sent = self.sent?;
        let window = sent.right_edge.wrapping_sub(sent.acknowledgement) >> self.window_shift;
        Some(Control {
            flags: Flags::ACK,
            sequence: sent.end.wrapping_sub(1),
            acknowledgement: sent.acknowledgement,
            window: u16::try_from(window).unwrap_or(u16::MAX),
        })
    }

    /// How long the flow may be silent before a sign of life is due; `None` when it needs none: it was not answered yet, it
    /// repeats what it sent by itself, or only we send.
    pub(in crate::engine) fn silence(&self) -> Option<Instant> {
        match self.state() {
            State::Established => Some(SILENT),
            State::FinWait2 => Some(SILENT_HALF_CLOSED),
            _ => None,
        }
    }
}

/// Conntrack forgets an established connection after five days; who sets that lower seldom goes below some minutes.
const SILENT: Instant = Instant::from_secs(120);
/// It forgets one that we finished, and whose application is still working on its answer, after 60 s.
const SILENT_HALF_CLOSED: Instant = Instant::from_secs(20);
