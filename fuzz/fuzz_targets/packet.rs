//! Any bytes as one packet: every accessor, every answer, and the engine itself.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_core::engine::{Engine, Event, HeapRings, Limits, Offload};
use mesh_core::packet::build::{self, Unreachable};
use mesh_core::packet::{Packet, Transport};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = Packet::parse(bytes) {
        let _ = packet.checksums_valid();
        if let (Transport::Tcp(tcp), Some(key)) = (packet.transport(), packet.key()) {
            let _ = (
                tcp.options_valid(),
                tcp.max_segment_size(),
                tcp.window_scale(),
                tcp.sequence_len(),
            );
            let _ = build::reset(&key, &tcp);
        }
        for why in [Unreachable::Host, Unreachable::Port, Unreachable::Prohibited] {
            let icmp = build::unreachable(packet.bytes(), why).expect("a parsed packet can be quoted");
            Packet::parse(&icmp).expect("what we build can be parsed");
        }
    }
    engine(bytes);
});

/// The input as a run of packets, each behind a length byte, into an engine that accepts everything.
fn engine(mut bytes: &[u8]) {
    let limits = Limits {
        flows: 8,
        half_open: 4,
        half_open_per_destination: 4,
        opened: 8,
        ring_bytes: 65_536,
        events: 16,
        linger: Duration::from_secs(60),
    };
    let offload = Offload {
        checksum: true,
        segmentation: true,
    };
    let mut engine = Engine::new(limits, offload, [0; 32], Box::new(HeapRings::new(65_536, 16)));
    let mut out = vec![0; 65_535];
    let mut now = Duration::from_secs(1);
    // One that we opened ourselves, so that its answers are met too.
    let caller = std::net::IpAddr::from([10, 0, 0, 2]);
    let _ = engine.connect(now, caller, (std::net::Ipv4Addr::new(10, 0, 0, 1), 80).into());
    while let [len, rest @ ..] = bytes {
        let (packet, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        bytes = rest;
        now += Duration::from_millis(u64::from(*len));
        engine.handle_packet(now, packet);
        engine.handle_timeout(now);
        while let Some(event) = engine.poll_event() {
            match event {
                Event::Opened { flow, .. } => drop(engine.accept(now, flow)),
                Event::Connected { flow } => drop(engine.write(now, flow, &[7; 100])),
                Event::Readable { flow } => drop(engine.read_with(now, flow, 1000, &mut |_| {})),
                Event::Writable { .. } | Event::Closed { .. } | Event::Datagram { .. } => {}
            }
        }
        while engine.poll_packet(now, &mut out).is_some() {}
        assert!(engine.poll_timeout().is_none_or(|at| at > now));
    }
}
