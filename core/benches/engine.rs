//! What one packet costs: parsing, a data segment through a flow (among few and many), and a connection from SYN to reset.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mesh_core::engine::{Engine, Event, FlowId, HeapRings, Limits, Offload, Read, Refusal};
use mesh_core::packet::{Packet, Transport};

const RING: usize = 64 << 10;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x08;

/// The application's side of a flow, as far as it takes to send data.
struct Client {
    number: u32,
    flow: FlowId,
    sequence: u32,
    acknowledged: u32,
}

fn parse(c: &mut Criterion) {
    let packet = segment(1, ACK | PUSH, 1000, 2000, &[7; 1400]);
    let mut group = c.benchmark_group("packet");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse", |b| b.iter(|| Packet::parse(black_box(&packet)).unwrap().key()));
    group.finish();
}

fn data_segment(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine/segment of 1400 bytes among flows");
    group.throughput(Throughput::Elements(1));
    for flows in [1, 100, 2_000] {
        group.bench_with_input(BenchmarkId::from_parameter(flows), &flows, |b, &flows| {
            let mut engine = engine();
            let mut out = vec![0; 65_535 + 64];
            let mut clients: Vec<Client> = (1..=flows).map(|n| open(&mut engine, &mut out, n)).collect();
            let mut turn = 0;
            let payload = [7; 1400];
            b.iter(|| {
                // A stride that is prime to the count visits all flows, far from each other.
                turn = (turn + 7_919) % clients.len();
                let client = &mut clients[turn];
                let packet = segment(
                    client.number,
                    ACK | PUSH,
                    client.sequence,
                    client.acknowledged,
                    &payload,
                );
                client.sequence = client.sequence.wrapping_add(1400);
                engine.handle_packet(NOW, &packet);
                let mut bytes = 0;
                while let Ok(Read::Bytes(read)) = engine.read_with(NOW, client.flow, RING, &mut |part| {
                    bytes += black_box(part).len();
                }) {
                    if read == 0 {
                        break;
                    }
                }
                assert_eq!(bytes, 1400);
                drain(&mut engine, &mut out);
            });
        });
    }
    group.finish();
}

fn connection(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine/connection");
    group.throughput(Throughput::Elements(1));
    let mut out = vec![0; 65_535 + 64];
    let mut number = 0;
    group.bench_function("accepted, then aborted", |b| {
        let mut engine = engine();
        b.iter(|| {
            number = number % 1_000_000 + 1;
            let client = open(&mut engine, &mut out, number);
            engine.abort(NOW, client.flow);
            drain(&mut engine, &mut out);
        });
    });
    group.bench_function("refused", |b| {
        let mut engine = engine();
        b.iter(|| {
            number = number % 1_000_000 + 1;
            engine.handle_packet(NOW, &segment(number, SYN, 0, 0, &[]));
            let flow = opened(&mut engine);
            engine.refuse(NOW, flow, Refusal::Refused);
            drain(&mut engine, &mut out);
        });
    });
    group.finish();
}

const NOW: Duration = Duration::from_secs(1);

fn engine() -> Engine {
    let limits = Limits {
        flows: 8_192,
        half_open: 4_096,
        half_open_per_destination: 4_096,
        ring_bytes: RING,
        events: 4_096,
        linger: Duration::from_secs(10),
    };
    let offload = Offload {
        checksum: true,
        segmentation: false,
    };
    Engine::new(limits, offload, [3; 32], Box::new(HeapRings::new(RING, 8_192)))
}

/// A flow through its handshake.
fn open(engine: &mut Engine, out: &mut [u8], number: u32) -> Client {
    engine.handle_packet(NOW, &segment(number, SYN, 0, 0, &[]));
    let flow = opened(engine);
    engine.accept(NOW, flow).unwrap();
    let answer = engine.poll_packet(NOW, out).unwrap();
    let Transport::Tcp(tcp) = Packet::parse(&out[..answer.len]).unwrap().transport() else {
        panic!("a SYN is answered with TCP");
    };
    let acknowledged = tcp.sequence().wrapping_add(1);
    engine.handle_packet(NOW, &segment(number, ACK, 1, acknowledged, &[]));
    drain(engine, out);
    Client {
        number,
        flow,
        sequence: 1,
        acknowledged,
    }
}

fn opened(engine: &mut Engine) -> FlowId {
    loop {
        if let Event::Opened { flow, .. } = engine.poll_event().unwrap() {
            return flow;
        }
    }
}

fn drain(engine: &mut Engine, out: &mut [u8]) {
    while engine.poll_packet(NOW, out).is_some() {}
    while engine.poll_event().is_some() {}
}

/// A TCP segment over IPv4 without checksums, as the kernel hands it over when checksums are offloaded; the number makes
/// address and port of its source.
fn segment(number: u32, flags: u8, sequence: u32, acknowledgement: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(40 + payload.len()).unwrap();
    let (host, port) = (number / 50_000, u16::try_from(number % 50_000).unwrap() + 10_000);
    let mut packet = Vec::with_capacity(usize::from(length));
    packet.extend([0x45, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0]);
    packet.push(u8::try_from(host + 1).unwrap());
    packet.extend([240, 240, 0, 1]);
    packet.extend(port.to_be_bytes());
    packet.extend(80u16.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(acknowledgement.to_be_bytes());
    packet.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

criterion_group!(benches, parse, data_segment, connection);
criterion_main!(benches);
