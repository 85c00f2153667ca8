//! What one packet costs: parsing it, and carrying it through the engine at 1, 1,000 and 10,000 live flows.
//!
//! `segment` is one 100-byte segment to a random flow, its read, and everything that the engine sends for it (an ACK
//! at most). It should stay flat but for cache misses as flows grow. `open` is SYN, accept, handshake and abort.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::engine::{Engine, Event, FlowId, HeapRings, Limits, Offload};
use mesh_core::packet::build::{Checksum, Control, datagram, segment};
use mesh_core::packet::checksum::Sum;
use mesh_core::packet::{Flags, Packet, Transport};

const RING: usize = 65_536;

/// One client of the benchmark.
struct Client {
    flow: FlowId,
    source: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
}

struct Bench {
    engine: Engine,
    now: Duration,
    out: Vec<u8>,
    clients: Vec<Client>,
}

fn far() -> SocketAddr {
    "240.240.0.1:80".parse().unwrap()
}

fn source(number: usize) -> SocketAddr {
    let number = u32::try_from(number).unwrap();
    let host = std::net::Ipv4Addr::from(0x0a00_0000 + 1 + number / 50_000);
    SocketAddr::new(host.into(), u16::try_from(1000 + number % 50_000).unwrap())
}

fn tcp(source: SocketAddr, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    let control = Control {
        flags,
        sequence,
        acknowledgement,
        window: 65_535,
    };
    let mut packet = segment(source, far(), control).unwrap();
    packet.extend_from_slice(payload);
    let total = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

impl Bench {
    fn new(flows: usize) -> Self {
        let limits = Limits {
            flows: flows + 1,
            half_open: 16,
            half_open_per_destination: 16,
            opened: 16,
            ring_bytes: RING,
            events: 1024,
            linger: Duration::from_secs(60),
        };
        let rings = HeapRings::new(RING, 2 * flows + 2);
        let offload = Offload {
            checksum: true,
            segmentation: true,
        };
        let engine = Engine::new(limits, offload, [1; 32], Box::new(rings));
        let mut bench = Self {
            engine,
            now: Duration::from_secs(1),
            out: vec![0; 65_535],
            clients: Vec::with_capacity(flows),
        };
        for number in 0..flows {
            let client = bench.open(number);
            bench.clients.push(client);
        }
        bench
    }

    fn open(&mut self, number: usize) -> Client {
        let source = source(number);
        self.engine.handle_packet(self.now, &tcp(source, Flags::SYN, 1, 0, b""));
        let Some(Event::Opened { flow, .. }) = self.engine.poll_event() else {
            panic!("not opened")
        };
        self.engine.accept(self.now, flow).unwrap();
        let packet = self.engine.poll_packet(self.now, &mut self.out).unwrap();
        let packet = Packet::parse(&self.out[..packet.len]).unwrap();
        let Transport::Tcp(answer) = packet.transport() else {
            panic!("not TCP")
        };
        let acknowledgement = answer.sequence().wrapping_add(1);
        self.engine
            .handle_packet(self.now, &tcp(source, Flags::ACK, 2, acknowledgement, b""));
        self.drain();
        Client {
            flow,
            source,
            sequence: 2,
            acknowledgement,
        }
    }

    fn drain(&mut self) {
        while let Some(packet) = self.engine.poll_packet(self.now, &mut self.out) {
            black_box(packet);
        }
        while let Some(event) = self.engine.poll_event() {
            black_box(event);
        }
    }

    /// One segment to a flow, read at once.
    fn exchange(&mut self, at: usize, payload: &[u8]) {
        self.now += Duration::from_micros(3);
        let client = &mut self.clients[at];
        let packet = tcp(
            client.source,
            Flags::ACK,
            client.sequence,
            client.acknowledgement,
            payload,
        );
        client.sequence = client.sequence.wrapping_add(u32::try_from(payload.len()).unwrap());
        let flow = client.flow;
        self.engine.handle_packet(self.now, &packet);
        let _ = self.engine.read_with(self.now, flow, usize::MAX, &mut |bytes| {
            black_box(bytes.len());
        });
        self.drain();
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle_timeout(self.now);
            self.drain();
        }
    }
}

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    for flows in [1, 1000, 10_000] {
        let mut bench = Bench::new(flows);
        let mut random = 1_usize;
        group.bench_function(BenchmarkId::new("segment", flows), |bencher| {
            bencher.iter(|| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                bench.exchange((random >> 33) % flows, &[7; 100]);
            });
        });
        group.bench_function(BenchmarkId::new("open", flows), |bencher| {
            bencher.iter(|| {
                let client = bench.open(flows);
                bench.engine.abort(bench.now, client.flow);
                bench.drain();
            });
        });
    }
    let mut bench = Bench::new(1);
    group.throughput(Throughput::Bytes(60_000));
    group.bench_function("bulk", |bencher| bencher.iter(|| bench.exchange(0, &[7; 60_000])));
    group.finish();
}

fn packet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("packet");
    let udp = datagram("10.0.0.1:1".parse().unwrap(), far(), &[0; 1000], Checksum::Full).unwrap();
    let tcp = tcp("10.0.0.1:1".parse().unwrap(), Flags::ACK, 1, 1, &[0; 1000]);
    for (name, bytes) in [("udp", &udp), ("tcp", &tcp)] {
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| Packet::parse(black_box(bytes)).unwrap().key());
        });
    }
    let bytes = vec![3; 65_535];
    group.throughput(Throughput::Bytes(65_535));
    group.bench_function("checksum", |bencher| {
        bencher.iter(|| Sum::of(black_box(&bytes)).finish())
    });
    group.finish();
}

criterion_group!(benches, packet, engine);
criterion_main!(benches);
