//! Segments by hand, for what no well-behaved host sends.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::engine::{Engine, Event, FlowId, HeapRings, Limits, Offload};
use mesh_core::packet::{Packet, Transport, build};

use crate::run::{FAR_V4, LINGER, RING};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// MSS 65495, window scale 7, timestamps.
const SYN_OPTIONS: [u8; 20] = [2, 4, 0xff, 0xd7, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 7];

/// A segment that the engine sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) window: u16,
    pub(crate) payload: Vec<u8>,
    /// The value of the timestamp option.
    pub(crate) timestamp: Option<u32>,
}

/// The engine and one client that is this test.
pub(crate) struct Raw {
    pub(crate) engine: Engine,
    pub(crate) now: Duration,
    pub(crate) source: SocketAddr,
    out: Vec<u8>,
}

pub(crate) fn limits() -> Limits {
    Limits {
        flows: 8,
        half_open: 4,
        half_open_per_destination: 3,
        opened: 6,
        ring_bytes: RING,
        events: 64,
        linger: LINGER,
    }
}

pub(crate) fn far(port: u16) -> SocketAddr {
    SocketAddr::new(FAR_V4, port)
}

impl Raw {
    pub(crate) fn new(limits: Limits, rings: usize) -> Self {
        let memory = HeapRings::new(limits.ring_bytes, rings);
        let offload = Offload {
            checksum: true,
            segmentation: true,
        };
        Self {
            engine: Engine::new(limits, offload, [3; 32], Box::new(memory)),
            now: Duration::from_secs(5),
            source: "10.0.0.1:1000".parse().unwrap(),
            out: vec![0; 65_535],
        }
    }

    /// Sends a segment; gives what the engine answers at once.
    pub(crate) fn send(
        &mut self,
        to: u16,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: &[u8],
    ) -> Vec<Seen> {
        let control = build::Control {
            flags,
            sequence,
            acknowledgement,
            window: 512,
        };
        let mut packet = build::segment(self.source, far(to), control).unwrap();
        if flags & SYN != 0 {
            packet.extend_from_slice(&SYN_OPTIONS);
            packet[32] = u8::try_from((20 + SYN_OPTIONS.len()) / 4).unwrap() << 4;
        }
        packet.extend_from_slice(payload);
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        self.engine.handle_packet(self.now, &packet);
        self.drain()
    }

    /// Everything that the engine sends now.
    pub(crate) fn drain(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        while let Some(packet) = self.engine.poll_packet(self.now, &mut self.out) {
            let packet = Packet::parse(&self.out[..packet.len]).unwrap();
            let Transport::Tcp(tcp) = packet.transport() else {
                continue;
            };
            seen.push(Seen {
                flags: tcp.flags().0,
                sequence: tcp.sequence(),
                acknowledgement: tcp.acknowledgement(),
                window: tcp.window(),
                payload: tcp.payload().to_vec(),
                timestamp: tcp
                    .option(8)
                    .map(|data| u32::from_be_bytes(*data.first_chunk().unwrap())),
            });
        }
        seen
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.engine.poll_event()).collect()
    }

    /// Lets time pass, with the engine's timers.
    pub(crate) fn pass(&mut self, time: Duration) -> Vec<Seen> {
        let until = self.now + time;
        let mut seen = self.drain();
        while let Some(at) = self.engine.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            seen.extend(self.drain());
        }
        self.now = until;
        seen
    }

    /// A SYN; gives the new flow.
    pub(crate) fn open(&mut self, to: u16, sequence: u32) -> FlowId {
        assert_eq!(self.send(to, SYN, sequence, 0, b""), []);
        match self.events()[..] {
            [.., Event::Opened { flow, .. }] => flow,
            ref other => panic!("not opened: {other:?}"),
        }
    }

    /// The whole handshake with sequence number 100; gives the flow and the engine's first sequence number.
    pub(crate) fn connect(&mut self, to: u16) -> (FlowId, u32) {
        let flow = self.open(to, 100);
        self.engine.accept(self.now, flow).unwrap();
        let answer = self.drain();
        let [
            Seen {
                flags,
                sequence,
                acknowledgement: 101,
                ..
            },
        ] = answer[..]
        else {
            panic!("{answer:?}")
        };
        assert_eq!(flags, SYN | ACK);
        let next = sequence.wrapping_add(1);
        assert_eq!(self.send(to, ACK, 101, next, b""), []);
        (flow, next)
    }

    /// Reads all there is: the bytes, and whether the end was met.
    pub(crate) fn read(&mut self, flow: FlowId) -> (Vec<u8>, bool) {
        use mesh_core::engine::Read;
        let mut bytes = Vec::new();
        loop {
            match self
                .engine
                .read_with(self.now, flow, usize::MAX, &mut |part| bytes.extend_from_slice(part))
            {
                Ok(Read::Bytes(_)) => {}
                Ok(Read::Blocked) => return (bytes, false),
                Ok(Read::End) => return (bytes, true),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
