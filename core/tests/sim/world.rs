//! What happens, and what must hold.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_core::engine::{CloseReason, Engine, Event, FlowId, HeapRings, Limits, Offload, Read, Refusal};
use mesh_core::packet::checksum::{Sum, pseudo_header};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use crate::host::{ADDRESS4, ADDRESS6, Host};

/// How the engine is woken.
#[derive(Clone, Copy, PartialEq)]
pub enum Wake {
    Deadlines,
    Ticks,
}

/// How a connection ended, as the application saw it, and what passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Finished,
    Refused,
    ResetByFarSide,
    ResetByApplication,
}

/// What can be seen of a run.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    connections: Vec<(End, Vec<u8>, Vec<u8>)>,
}

impl Outcome {
    pub fn add(&mut self, other: &Self) {
        let ends = other
            .connections
            .iter()
            .map(|(end, up, down)| (*end, vec![0; up.len()], vec![0; down.len()]));
        self.connections.extend(ends);
    }

    pub fn assert_everything_happened(&self) {
        for end in [
            End::Finished,
            End::Refused,
            End::ResetByFarSide,
            End::ResetByApplication,
        ] {
            assert!(
                self.connections.iter().any(|connection| connection.0 == end),
                "no connection was {end:?}"
            );
        }
        assert!(
            self.connections
                .iter()
                .any(|(end, up, down)| *end == End::Finished && up.len() > 100_000 && down.len() > 100_000)
        );
    }
}

/// What one connection is going to do; decided at its start, so that it does not depend on the order of wakes.
#[derive(Clone, Debug)]
struct Plan {
    end: End,
    up: Vec<u8>,
    down: Vec<u8>,
    refusal: Refusal,
    /// The far side reads at most this much at a time.
    sip: usize,
    answer_after: Duration,
}

struct Connection {
    plan: Plan,
    local: SocketAddr,
    handle: SocketHandle,
    opened: Duration,
    flow: Option<FlowId>,
    accepted: bool,
    sent: usize,
    closed: bool,
    got: Vec<u8>,
    far_got: Vec<u8>,
    far_sent: usize,
    far_ended: u32,
    far_finished: bool,
    reason: Option<CloseReason>,
    icmp: bool,
}

pub struct World {
    wake: Wake,
    random: u64,
    now: Duration,
    host: Host,
    engine: Engine,
    connections: Vec<Connection>,
    by_flow: BTreeMap<FlowId, usize>,
    out: Vec<u8>,
    offload: Offload,
}

const RING: usize = 65_536;

impl World {
    pub fn new(seed: u64, wake: Wake) -> Self {
        let limits = Limits {
            flows: 100,
            half_open: 50,
            half_open_per_destination: 50,
            ring_bytes: RING,
            events: 100,
            linger: Duration::from_secs(3600),
            mtu: if seed % 3 == 0 { 1500 } else { 65_535 },
        };
        let offload = Offload::default();
        let rings = Box::new(HeapRings::new(RING, 200));
        Self {
            wake,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1,
            now: Duration::from_secs(1),
            host: Host::new(seed),
            engine: Engine::new(limits, offload, [seed as u8; 32], rings),
            connections: Vec::new(),
            by_flow: BTreeMap::new(),
            out: vec![0; 65_535],
            offload,
        }
    }

    pub fn run(mut self) -> Outcome {
        let count = 1 + self.below(6);
        for number in 0..count {
            let plan = self.plan();
            self.open(number as u16, plan);
        }
        let end = self.now + Duration::from_secs(120);
        while self.now < end {
            self.settle();
            if self.connections.iter().all(|connection| connection.reason.is_some()) && self.wake == Wake::Deadlines {
                break;
            }
            let engine = self.engine.poll_timeout();
            let host = self.host.poll_at(self.now);
            let answers = self
                .connections
                .iter()
                .filter(|c| !c.accepted && c.reason.is_none())
                .map(|c| c.opened + c.plan.answer_after);
            let next = answers
                .chain(engine)
                .chain(host)
                .min()
                .unwrap_or(end)
                .max(self.now + Duration::from_millis(1));
            self.now = match self.wake {
                Wake::Deadlines => next,
                Wake::Ticks if self.connections.iter().all(|c| c.reason.is_some()) => break,
                Wake::Ticks => self.now + Duration::from_millis(1),
            };
            self.engine.handle_timeout(self.now);
        }
        self.settle();
        assert_eq!(
            self.engine.flows(),
            0,
            "flows are left: {:?}",
            self.connections
                .iter()
                .map(|c| (&c.plan.end, c.reason))
                .collect::<Vec<_>>()
        );
        assert_eq!(self.engine.half_open(), 0);
        assert_eq!(self.engine.poll_timeout(), None, "a timer is left");
        Outcome {
            connections: self.connections.iter().map(Connection::judge).collect(),
        }
    }

    fn plan(&mut self) -> Plan {
        let bytes = |world: &mut Self| {
            let length = match world.below(4) {
                0 => 0,
                1 => world.below(100),
                2 => world.below(10_000),
                _ => world.below(400_000),
            };
            let salt = world.below(256) as usize;
            (0..length as usize)
                .map(|at| (at * 31 + salt) as u8)
                .collect::<Vec<u8>>()
        };
        let end = [
            End::Finished,
            End::Finished,
            End::Finished,
            End::Refused,
            End::ResetByFarSide,
            End::ResetByApplication,
        ][self.below(6) as usize];
        Plan {
            end,
            up: bytes(self),
            down: bytes(self),
            refusal: [Refusal::Refused, Refusal::Denied, Refusal::Unreachable][self.below(3) as usize],
            sip: 1 + self.below(100_000) as usize,
            answer_after: Duration::from_millis(self.below(2_500)),
        }
    }

    fn open(&mut self, number: u16, plan: Plan) {
        let six = self.below(2) == 1;
        let ip = |v4: &str, v6: &str| -> IpAddr { if six { v6.parse().unwrap() } else { v4.parse().unwrap() } };
        let local = SocketAddr::new(ip(ADDRESS4, ADDRESS6), 40_000 + number);
        let remote = SocketAddr::new(ip("240.240.0.5", "2001:2::5"), 80);
        let handle = self.host.connect(local, remote, RING);
        self.connections.push(Connection {
            plan,
            local,
            handle,
            opened: self.now,
            flow: None,
            accepted: false,
            sent: 0,
            closed: false,
            got: Vec::new(),
            far_got: Vec::new(),
            far_sent: 0,
            far_ended: 0,
            far_finished: false,
            reason: None,
            icmp: false,
        });
    }

    /// Everything that can happen at this moment.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            self.host.poll(self.now);
            while let Some(packet) = self.host.sent() {
                busy = true;
                trace("app", self.now, &packet);
                self.engine.handle_packet(self.now, &packet);
            }
            while let Some(event) = self.engine.poll_event() {
                busy = true;
                self.event(event);
            }
            busy |= self.answer();
            busy |= self.far_sides();
            busy |= self.applications();
            while let Some(packet) = self.engine.poll_packet(self.now, &mut self.out) {
                busy = true;
                let bytes = self.out[..packet.len].to_vec();
                assert!(
                    self.offload.checksum || checksums_hold(&bytes),
                    "bad checksum: {bytes:?}"
                );
                trace("tun", self.now, &bytes);
                self.note_icmp(&bytes);
                self.host.deliver(bytes);
            }
            if !busy {
                return;
            }
        }
        panic!("the engine never comes to rest");
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Opened { flow, key } => {
                let index = self
                    .connections
                    .iter()
                    .position(|c| c.local == key.source && c.flow.is_none());
                let index = index.expect("a second flow for one connection");
                self.connections[index].flow = Some(flow);
                self.by_flow.insert(flow, index);
            }
            Event::Closed { flow, reason } => {
                let connection = &mut self.connections[self.by_flow[&flow]];
                assert_eq!(connection.reason, None, "closed twice");
                connection.reason = Some(reason);
            }
            Event::Readable { .. } | Event::Writable { .. } => {}
            Event::Datagram { .. } => panic!("no datagram was sent"),
        }
    }

    fn answer(&mut self) -> bool {
        let mut busy = false;
        for connection in &mut self.connections {
            let (Some(flow), false, None) = (connection.flow, connection.accepted, connection.reason) else {
                continue;
            };
            if self.now < connection.opened + connection.plan.answer_after {
                assert!(
                    !self.host.is_established(connection.handle),
                    "the SYN was answered too early"
                );
                continue;
            }
            busy = true;
            connection.accepted = true;
            if connection.plan.end == End::Refused {
                self.engine.refuse(self.now, flow, connection.plan.refusal);
            } else {
                self.engine.accept(self.now, flow).unwrap();
            }
        }
        busy
    }

    /// The tunnel's side of each flow: reads in sips, writes, finishes, resets.
    fn far_sides(&mut self) -> bool {
        let mut busy = false;
        for connection in &mut self.connections {
            let (Some(flow), true, None) = (connection.flow, connection.accepted, connection.reason) else {
                continue;
            };
            let mut got = Vec::new();
            loop {
                let read = self
                    .engine
                    .read_with(self.now, flow, connection.plan.sip, &mut |bytes| {
                        got.extend_from_slice(bytes)
                    });
                match read {
                    Ok(Read::Bytes(_)) => busy = true,
                    Ok(Read::End) if connection.far_ended == 0 => {
                        connection.far_ended = 1;
                        busy = true;
                        break;
                    }
                    Ok(Read::End | Read::Blocked) | Err(_) => break,
                }
            }
            connection.far_got.extend_from_slice(&got);
            let rest = &connection.plan.down[connection.far_sent..];
            if let Ok(written) = self.engine.write(self.now, flow, rest) {
                connection.far_sent += written;
                busy |= written > 0;
            }
            if connection.far_sent < connection.plan.down.len() || connection.far_finished {
                continue;
            }
            if connection.plan.end == End::ResetByFarSide {
                connection.far_finished = true;
                self.engine.abort(self.now, flow);
                busy = true;
            } else if self.engine.finish(self.now, flow).is_ok() {
                connection.far_finished = true;
                busy = true;
            }
        }
        busy
    }

    fn applications(&mut self) -> bool {
        let mut busy = false;
        for connection in &mut self.connections {
            let socket = self.host.socket(connection.handle);
            while socket.can_recv() {
                let got = socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap();
                connection.got.extend_from_slice(&got);
                busy = true;
            }
            if socket.may_send() && connection.sent < connection.plan.up.len() {
                let sent = socket.send_slice(&connection.plan.up[connection.sent..]).unwrap();
                connection.sent += sent;
                busy |= sent > 0;
            }
            let established = !matches!(socket.state(), State::SynSent | State::Closed);
            if connection.closed || !established || connection.sent < connection.plan.up.len() {
                continue;
            }
            match connection.plan.end {
                End::ResetByApplication => socket.abort(),
                End::Finished => socket.close(),
                End::Refused | End::ResetByFarSide => continue,
            }
            connection.closed = true;
            busy = true;
        }
        busy
    }

    fn note_icmp(&mut self, packet: &[u8]) {
        let (protocol, header) = if packet[0] >> 4 == 4 {
            (packet[9], 20)
        } else {
            (packet[6], 40)
        };
        if protocol != 1 && protocol != 58 {
            return;
        }
        // The quoted SYN names the connection by its source port; the real kernel gives up on it.
        let quoted = &packet[header + 8 + header..];
        let port = u16::from_be_bytes([quoted[0], quoted[1]]);
        for connection in self.connections.iter_mut().filter(|c| c.local.port() == port) {
            connection.icmp = true;
            self.host.socket(connection.handle).abort();
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }
}

impl Connection {
    /// What must hold at the end of a connection, and what is seen of it.
    fn judge(&self) -> (End, Vec<u8>, Vec<u8>) {
        let plan = &self.plan;
        assert!(plan.up.starts_with(&self.far_got), "the far side got what was not sent");
        assert!(
            plan.down.starts_with(&self.got),
            "the application got what was not sent"
        );
        let reason = self.reason.expect("never closed");
        match plan.end {
            End::Finished => {
                assert_eq!(reason, CloseReason::Finished);
                assert!(self.far_got == plan.up && self.got == plan.down, "bytes are missing");
                assert!(self.far_ended == 1, "the end was not seen");
                (plan.end, self.far_got.clone(), self.got.clone())
            }
            End::Refused => {
                assert_eq!(reason, CloseReason::Aborted);
                assert!(
                    self.far_got.is_empty() && self.got.is_empty(),
                    "a refused flow carried bytes"
                );
                assert_eq!(self.icmp, plan.refusal != Refusal::Refused);
                (plan.end, Vec::new(), Vec::new())
            }
            // How much passes before a reset depends on timing.
            End::ResetByFarSide => {
                assert_eq!(reason, CloseReason::Aborted);
                (plan.end, Vec::new(), Vec::new())
            }
            End::ResetByApplication => {
                assert_eq!(reason, CloseReason::ResetByApplication);
                (plan.end, Vec::new(), Vec::new())
            }
        }
    }
}

/// With `MESH_SEED` set every packet is printed.
fn trace(from: &str, now: Duration, packet: &[u8]) {
    if std::env::var_os("MESH_SEED").is_some() {
        use smoltcp::wire::{Ipv4Packet, Ipv6Packet, PrettyPrinter};
        match packet[0] >> 4 {
            4 => println!(
                "{from} {now:?} {}",
                PrettyPrinter::<Ipv4Packet<&[u8]>>::new("", &packet)
            ),
            _ => println!(
                "{from} {now:?} {}",
                PrettyPrinter::<Ipv6Packet<&[u8]>>::new("", &packet)
            ),
        }
    }
}

fn checksums_hold(packet: &[u8]) -> bool {
    let (header, protocol, source, destination): (usize, u8, IpAddr, IpAddr) = if packet[0] >> 4 == 4 {
        if Sum::default().bytes(&packet[..20]).folded() != 0xffff {
            return false;
        }
        let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        (20, packet[9], ip(12), ip(16))
    } else {
        let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        (40, packet[6], ip(8), ip(24))
    };
    let body = &packet[header..];
    let sum = if protocol == 1 {
        Sum::default()
    } else {
        pseudo_header(source, destination, protocol, body.len())
    };
    sum.bytes(body).folded() == 0xffff
}
