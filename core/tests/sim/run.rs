//! One run: the engine between a host and far sides, in virtual time, with what must hold after every step.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use mesh_core::engine::{CloseReason, Engine, Event, HeapRings, Limits, Offload, Refusal, Ring, RingMemory};
use mesh_core::packet::Protocol;
use mesh_core::packet::build::{self, Checksum};
use smoltcp::socket::tcp::State;

use crate::host::{Host, Told, V4, V6};
use crate::link::Link;
use crate::peer::{ECHO_PORT, Peer};
use crate::random::Random;
use crate::step::{Decision, Step};
use crate::wire;

pub(crate) const RING: usize = 65_536;
pub(crate) const LINGER: Duration = Duration::from_secs(300);
const MILLI: Duration = Duration::from_millis(1);
/// Nothing takes longer than this in virtual time.
const PATIENCE: Duration = Duration::from_secs(900);

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) lossy: bool,
    pub(crate) offload: bool,
    pub(crate) mtu: u16,
    /// Wakes the engine every millisecond, and not only at its deadlines.
    pub(crate) ticking: bool,
}

/// What an application, or its far side, can tell of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Client {
        connected: bool,
        told: Option<Told>,
        sent: u64,
        received: u64,
        end: bool,
    },
    Peer {
        read: u64,
        end: bool,
        written: u64,
        closed: Option<CloseReason>,
    },
    Datagrams {
        answered: usize,
        refused: usize,
    },
}

pub(crate) struct Run {
    options: Options,
    pub(crate) now: Duration,
    pub(crate) engine: Engine,
    pub(crate) host: Host,
    pub(crate) peers: Vec<Peer>,
    plans: Vec<(Decision, Duration)>,
    to_engine: Link,
    to_host: Link,
    random: Random,
    rings: Rc<Cell<usize>>,
    datagrams: Vec<SocketAddr>,
    out: Vec<u8>,
}

/// Makes a run of steps and brings it to its end.
pub(crate) fn run(options: Options, steps: &[Step]) -> Vec<Outcome> {
    let mut run = Run::new(options);
    for step in steps {
        run.step(*step);
    }
    run.finish()
}

impl Run {
    pub(crate) fn new(options: Options) -> Self {
        // smoltcp's client does not survive a window that shrinks, when packets are lost too. Without a scale it never
        // does.
        let ring = if options.lossy { RING - 1 } else { RING };
        let limits = Limits {
            flows: 64,
            half_open: 32,
            half_open_per_destination: 16,
            opened: 32,
            ring_bytes: ring,
            events: 256,
            linger: LINGER,
        };
        let rings = Rc::new(Cell::new(0));
        let memory = Counted {
            rings: HeapRings::new(ring, 128),
            taken: Rc::clone(&rings),
        };
        let offload = Offload {
            checksum: options.offload,
            segmentation: options.offload,
        };
        let engine = Engine::new(limits, offload, [7; 32], Box::new(memory)).with_mtu(options.mtu);
        Self {
            options,
            now: Duration::from_secs(1),
            engine,
            host: Host::new(options.mtu, options.seed),
            peers: Vec::new(),
            plans: Vec::new(),
            to_engine: Link::new(options.seed ^ 0xe, options.lossy),
            to_host: Link::new(options.seed ^ 0xf, options.lossy),
            random: Random::new(options.seed ^ 0xd),
            rings,
            datagrams: Vec::new(),
            out: vec![0; 65_535],
        }
    }

    /// Rings that are in use.
    pub(crate) fn rings(&self) -> usize {
        self.rings.get()
    }

    /// An application connects; gives the client's number.
    pub(crate) fn connect(&mut self, v6: bool, decision: Decision, delay: Duration) -> usize {
        let number = self.host.clients.len();
        let port = 10_000 + u16::try_from(number).unwrap();
        self.plans.push((decision, delay));
        self.host
            .connect(SocketAddr::new(if v6 { FAR_V6 } else { FAR_V4 }, 80), port)
    }

    /// The far side calls an application; gives the client's number.
    pub(crate) fn call(&mut self, v6: bool, listens: bool) -> usize {
        let port = 10_000 + u16::try_from(self.host.clients.len()).unwrap();
        let (near, far) = if v6 { (V6, FAR_V6) } else { (V4, FAR_V4) };
        let near = SocketAddr::new(near, port);
        let (flow, key) = self.engine.connect(self.now, far, near).unwrap();
        assert_eq!((key.source, key.destination.ip()), (near, far));
        let client = self.host.expect(near, key.destination, listens);
        self.plans.push((Decision::Accept, Duration::ZERO));
        self.peers.push(Peer::calling(flow, key, client, listens));
        client
    }

    /// Does one step, and lets the world react to it.
    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::OpenTcp { v6, decision, delay } if self.host.clients.len() < 24 => {
                self.connect(v6, decision, Duration::from_millis(delay.into()));
            }
            Step::Call { v6, listens } if self.host.clients.len() < 24 => {
                self.call(v6, listens);
            }
            Step::OpenTcp { .. } | Step::Call { .. } => {}
            Step::Send { flow, bytes } => {
                if let Some(client) = self.pick(flow).filter(|client| !self.host.clients[*client].finish) {
                    self.host.clients[client].to_send += u64::from(bytes);
                }
            }
            Step::HalfClose { flow } => {
                if let Some(client) = self.pick(flow) {
                    self.host.clients[client].finish = true;
                }
            }
            Step::Abort { flow } => {
                if let Some(client) = self.pick(flow).filter(|client| !self.host.clients[*client].is_done()) {
                    self.host.abort(client);
                }
            }
            Step::PeerSend { .. } | Step::PeerFinish { .. } | Step::PeerAbort { .. } | Step::PeerRead { .. } => {
                self.peer_step(step);
            }
            Step::Read { flow, reading } => {
                if let Some(client) = self.pick(flow) {
                    self.host.clients[client].reading = reading;
                }
            }
            Step::SendUdp { v6, bytes, refused } => self.send_udp(v6, bytes, refused),
            Step::Noise { kind, seed } => self.noise(kind, seed),
            Step::Idle { millis } => self.advance(Duration::from_millis(millis.into())),
        }
        self.advance(MILLI);
    }

    /// Lets time pass.
    pub(crate) fn advance(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while self.now < until {
            self.now = self.next_wake().min(until);
            if self.options.ticking || self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
                self.engine.handle_timeout(self.now);
            }
            self.settle();
        }
    }

    /// Ends all that lives, waits for it, and checks that nothing is left.
    pub(crate) fn finish(mut self) -> Vec<Outcome> {
        for client in &mut self.host.clients {
            client.finish = true;
            client.reading = true;
        }
        let limit = self.now + PATIENCE;
        loop {
            for peer in &mut self.peers {
                peer.reading = true;
                peer.finish = true;
            }
            self.settle();
            if self.is_quiet() {
                break;
            }
            assert!(
                self.now < limit,
                "it does not end: {:?}\n{:?}\n{:?} {:?} {:?}",
                self.engine.views().collect::<Vec<_>>(),
                self.peers.iter().filter(|peer| peer.is_live()).collect::<Vec<_>>(),
                self.host.clients,
                self.engine,
                (0..self.host.clients.len())
                    .map(|client| self.host.state(client))
                    .collect::<Vec<_>>(),
            );
            let next = self.next_wake();
            self.advance(next - self.now);
        }
        assert_eq!(self.engine.flows(), 0);
        assert_eq!(self.engine.half_open(), 0);
        assert_eq!(self.engine.deadlines(), 0, "a timer is left");
        assert_eq!(self.rings(), 0, "a ring is left");
        assert_eq!(self.engine.backlog(), 0);
        self.check_outcome();
        self.outcome()
    }

    fn is_quiet(&self) -> bool {
        let flying = self.to_engine.next_arrival().or_else(|| self.to_host.next_arrival());
        let opening = (0..self.host.clients.len()).any(|client| self.host.state(client) == State::SynSent);
        flying.is_none() && !opening && self.engine.flows() == 0
    }

    fn pick(&self, flow: u8) -> Option<usize> {
        let count = self.host.clients.len();
        (count > 0).then(|| usize::from(flow) % count)
    }

    fn peer_step(&mut self, step: Step) {
        let (Step::PeerSend { flow, .. }
        | Step::PeerFinish { flow }
        | Step::PeerAbort { flow }
        | Step::PeerRead { flow, .. }) = step
        else {
            return;
        };
        let live: Vec<usize> = (0..self.peers.len())
            .filter(|peer| self.peers[*peer].is_live())
            .collect();
        if live.is_empty() {
            return;
        }
        let peer = &mut self.peers[live[usize::from(flow) % live.len()]];
        match step {
            Step::PeerSend { bytes, .. } if !peer.finish => peer.to_write += u64::from(bytes),
            Step::PeerFinish { .. } => peer.finish = true,
            Step::PeerRead { reading, .. } => peer.reading = reading,
            Step::PeerAbort { .. } => {
                peer.aborted = true;
                self.engine.abort(self.now, peer.flow);
            }
            _ => {}
        }
    }

    fn send_udp(&mut self, v6: bool, bytes: u16, refused: bool) {
        let (near, far) = if v6 { (V6, FAR_V6) } else { (V4, FAR_V4) };
        let port = if refused { 9 } else { ECHO_PORT };
        let source = SocketAddr::new(near, 20_000 + u16::try_from(self.datagrams.len()).unwrap());
        let payload = vec![0x5a; usize::from(bytes).min(65_400)];
        let packet = build::datagram(source, SocketAddr::new(far, port), &payload, Checksum::Full).unwrap();
        self.datagrams.push(SocketAddr::new(far, port));
        self.to_engine.send(self.now, packet);
    }

    /// Things that a kernel would not send; they must leave no trace but perhaps a RST.
    fn noise(&mut self, kind: u8, seed: u16) {
        let mut random = Random::new(seed.into());
        if kind.is_multiple_of(2) {
            let len = random.below(100);
            let bytes: Vec<u8> = (0..len).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
            return self.engine.handle_packet(self.now, &bytes);
        }
        // A segment of a live tuple, or of none, with any numbers; never a RST or SYN, which could mean it.
        let client = 10_000 + u16::try_from(random.below(26)).unwrap();
        let control = build::Control {
            flags: [0x10, 0x11, 0x18, 0x00][usize::from(kind >> 1) % 4],
            sequence: u32::try_from(random.next() >> 32).unwrap(),
            acknowledgement: u32::try_from(random.next() >> 32).unwrap(),
            window: seed,
        };
        let segment = build::segment(SocketAddr::new(V4, client), SocketAddr::new(FAR_V4, 81), control);
        self.engine.handle_packet(self.now, &segment.unwrap());
    }

    /// Everything that can happen at this moment happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            let batch = 1 + self.options.seed % 32;
            for _ in 0..batch {
                let Some(packet) = self.to_engine.receive(self.now) else {
                    break;
                };
                self.engine.handle_packet(self.now, &packet);
                busy = true;
            }
            busy |= self.drain();
            busy |= self.work();
            while let Some(packet) = self.to_host.receive(self.now) {
                self.host.receive(self.now, &packet);
                busy = true;
            }
            while let Some(mut packet) = self.host.poll(self.now) {
                if self.options.offload {
                    spoil_checksum(&mut packet);
                }
                self.to_engine.send(self.now, packet);
                busy = true;
            }
            if !busy {
                return;
            }
        }
        panic!("a busy loop");
    }

    /// Takes all packets and events out of the engine.
    fn drain(&mut self) -> bool {
        let mut busy = false;
        let mut count = 0;
        while let Some(packet) = self.engine.poll_packet(self.now, &mut self.out) {
            for completed in wire::complete(&self.out[..packet.len], packet, self.options.mtu) {
                self.to_host.send(self.now, completed);
            }
            busy = true;
            count += 1;
            assert!(count < 10_000, "the engine never stops sending");
        }
        let next = self.engine.poll_timeout();
        assert!(
            next.is_none_or(|at| at > self.now),
            "a deadline that is over: {next:?} at {:?}",
            self.now
        );
        while let Some(event) = self.engine.poll_event() {
            busy = true;
            self.handle(event);
        }
        busy
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Opened { flow, key } => {
                let client = usize::from(key.source.port() - 10_000);
                let (decision, delay) = self.plans[client];
                self.peers
                    .push(Peer::new(flow, key, client, decision, self.now + delay));
            }
            Event::Datagram { key, payload } if key.destination.port() == ECHO_PORT => {
                assert_eq!(key.protocol, Protocol::Udp);
                self.engine.send_datagram(key.destination, key.source, &payload);
            }
            Event::Datagram { key, payload } => self.engine.datagram_unreachable(key, &payload, Refusal::Refused),
            Event::Connected { flow }
            | Event::Readable { flow }
            | Event::Writable { flow }
            | Event::Closed { flow, .. } => {
                let peer = self.peers.iter_mut().find(|peer| peer.flow == flow);
                peer.expect("an event of an unknown flow").handle(&event);
            }
        }
    }

    fn work(&mut self) -> bool {
        let mut busy = false;
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let client = &self.host.clients[peer.client];
            busy |= peer.work(self.now, &mut self.engine, client, &mut self.random);
            // One mutation, then drain to empty, then the next.
            busy |= self.drain();
        }
        busy
    }

    fn next_wake(&mut self) -> Duration {
        if self.options.ticking {
            return self.now + MILLI;
        }
        let decisions = self.peers.iter().filter(|peer| !peer.decided && peer.closed.is_none());
        let mut next = decisions.map(|peer| peer.decide_at).min();
        for at in [
            self.engine.poll_timeout(),
            self.host.poll_at(self.now),
            self.to_engine.next_arrival(),
            self.to_host.next_arrival(),
        ] {
            next = [next, at].into_iter().flatten().min();
        }
        next.unwrap_or(self.now + Duration::from_secs(1)).max(self.now + MILLI)
    }

    /// What must be true of every flow when all is over.
    fn check_outcome(&self) {
        for peer in &self.peers {
            let client = &self.host.clients[peer.client];
            if peer.called && !matches!(peer.decision, Decision::Accept) {
                assert!(!peer.answered && !client.connected, "a refused call: {peer:?}");
                assert!(
                    peer.aborted || peer.closed == Some(CloseReason::ResetByApplication),
                    "{peer:?}"
                );
                continue;
            }
            if !matches!(peer.decision, Decision::Accept) {
                assert!(
                    !client.connected && client.received == 0 && peer.read == 0,
                    "a refused flow: {peer:?}"
                );
                let told = match (peer.decision, client.remote.is_ipv4()) {
                    (Decision::Denied, true) => Told::Icmp(3, 13),
                    (Decision::Denied, false) => Told::Icmp(1, 1),
                    (Decision::Unreachable, true) => Told::Icmp(3, 1),
                    (Decision::Unreachable, false) => Told::Icmp(1, 3),
                    _ => Told::Reset,
                };
                assert!(client.aborted || client.told == Some(told), "{client:?}");
                continue;
            }
            if client.aborted || peer.aborted || !client.connected {
                continue;
            }
            if self.options.lossy && peer.closed == Some(CloseReason::ResetByApplication) && peer.written == 0 {
                // A repeated SYN that arrived after its connection was over.
                continue;
            }
            assert_eq!(peer.closed, Some(CloseReason::Finished), "{peer:?} {client:?}");
            assert_eq!(peer.answered, peer.called);
            assert!(peer.end && client.end_seen, "an end was not seen: {peer:?} {client:?}");
            assert_eq!(
                (peer.read, peer.written),
                (client.sent, client.received),
                "{peer:?} {client:?}"
            );
            assert_eq!((peer.written, client.sent), (peer.to_write, client.to_send));
        }
        if !self.options.lossy {
            let echoes = self.datagrams.iter().filter(|far| far.port() == ECHO_PORT).count();
            assert_eq!(self.host.datagrams.len(), echoes);
            assert_eq!(self.host.datagrams_refused, self.datagrams.len() - echoes);
        }
    }

    fn outcome(&self) -> Vec<Outcome> {
        let clients = self.host.clients.iter().map(|client| Outcome::Client {
            connected: client.connected,
            told: client.told,
            sent: client.sent,
            received: client.received,
            end: client.end_seen,
        });
        let peers = self.peers.iter().map(|peer| Outcome::Peer {
            read: peer.read,
            end: peer.end,
            written: peer.written,
            closed: peer.closed,
        });
        let datagrams = Outcome::Datagrams {
            answered: self.host.datagrams.len(),
            refused: self.host.datagrams_refused,
        };
        clients.chain(peers).chain([datagrams]).collect()
    }
}

pub(crate) const FAR_V4: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::new(240, 240, 0, 9));
pub(crate) const FAR_V6: std::net::IpAddr = std::net::IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 9));

/// A device with checksum offload hands over unfinished checksums.
fn spoil_checksum(packet: &mut [u8]) {
    let at = if packet[0] >> 4 == 4 { 20 + 16 } else { 40 + 16 };
    packet[at] = !packet[at];
}

/// Counts the rings that are taken.
#[derive(Debug)]
struct Counted {
    rings: HeapRings,
    taken: Rc<Cell<usize>>,
}

impl RingMemory for Counted {
    fn take(&mut self) -> Option<Ring> {
        let ring = self.rings.take();
        self.taken.set(self.rings.taken());
        ring
    }

    fn give(&mut self, id: usize) {
        self.rings.give(id);
        self.taken.set(self.rings.taken());
    }
}
