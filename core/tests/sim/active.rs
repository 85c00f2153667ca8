//! Flows that the engine opens, against an application made by hand.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_core::engine::{CloseReason, ConnectError, Event, FlowId, Limits};
use mesh_core::packet::FlowKey;
use mesh_core::packet::build::{self, Control, Unreachable};

use crate::raw::{ACK, FIN, RST, Raw, SYN, Seen, limits};
use crate::run::{FAR_V4, FAR_V6, LINGER, RING};

const SECOND: Duration = Duration::from_secs(1);

/// A flow that the engine opens towards `raw.source`: its id, the caller's port, and the SYN.
fn call(raw: &mut Raw) -> (FlowId, u16, Seen) {
    let (flow, key) = raw.engine.connect(raw.now, FAR_V4, raw.source).unwrap();
    assert_eq!((key.source, key.destination.ip()), (raw.source, FAR_V4));
    let sent = raw.drain();
    let [syn] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((syn.flags, &syn.payload[..]), (SYN, &b""[..]));
    (flow, key.destination.port(), syn.clone())
}

/// The same, answered with sequence number 100; gives the engine's next sequence number.
fn connected(raw: &mut Raw) -> (FlowId, u16, u32) {
    let (flow, port, syn) = call(raw);
    let next = syn.sequence.wrapping_add(1);
    let acknowledged = raw.send(port, SYN | ACK, 100, next, b"");
    assert_eq!((acknowledged.len(), acknowledged[0].flags), (1, ACK));
    assert_eq!((acknowledged[0].sequence, acknowledged[0].acknowledgement), (next, 101));
    assert_eq!(raw.events(), [Event::Connected { flow }]);
    (flow, port, next)
}

fn closed(flow: FlowId, reason: CloseReason) -> Event {
    Event::Closed { flow, reason }
}

fn bare(flags: u8, sequence: u32, acknowledgement: u32) -> Control {
    Control {
        flags,
        sequence,
        acknowledgement,
        window: 500,
    }
}

#[test]
fn both_sides_speak_and_the_far_side_finishes_first() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, port, next) = connected(&mut raw);
    raw.engine.write(raw.now, flow, b"question").unwrap();
    raw.engine.finish(raw.now, flow).unwrap();
    let sent = raw.drain();
    assert_eq!((sent[0].sequence, &sent[0].payload[..]), (next, &b"question"[..]));
    assert!(sent[0].flags & FIN != 0);
    let end = next.wrapping_add(9);
    raw.send(port, ACK, 101, end, b"answer");
    assert_eq!(raw.events(), [Event::Readable { flow }]);
    assert_eq!(raw.read(flow), (b"answer".to_vec(), false));
    raw.send(port, ACK | FIN, 107, end, b"");
    assert_eq!(raw.read(flow), (vec![], true));
    assert_eq!(raw.pass(SECOND).last().unwrap().acknowledgement, 108);
    assert_eq!(raw.events().last(), Some(&closed(flow, CloseReason::Finished)));
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
}

#[test]
fn the_application_finishes_first_and_still_reads() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, port, next) = connected(&mut raw);
    raw.send(port, ACK | FIN, 101, next, b"hello");
    assert_eq!(raw.read(flow), (b"hello".to_vec(), true));
    raw.engine.write(raw.now, flow, b"bye").unwrap();
    raw.engine.finish(raw.now, flow).unwrap();
    let sent = raw.drain();
    let payload: Vec<u8> = sent.iter().flat_map(|sent| sent.payload.clone()).collect();
    assert_eq!((&payload[..], sent.last().unwrap().flags & FIN), (&b"bye"[..], FIN));
    raw.send(port, ACK, 107, next.wrapping_add(4), b"");
    assert_eq!(raw.events().last(), Some(&closed(flow, CloseReason::Finished)));
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
}

#[test]
fn what_is_written_before_the_answer_comes_right_behind_it() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, port, syn) = call(&mut raw);
    assert_eq!(raw.engine.write(raw.now, flow, b"early"), Ok(0));
    raw.engine.finish(raw.now, flow).unwrap();
    assert_eq!(raw.drain(), [], "nothing but the SYN before the answer");
    let next = syn.sequence.wrapping_add(1);
    let sent = raw.send(port, SYN | ACK, 100, next, b"");
    assert!(sent.iter().any(|sent| sent.flags & FIN != 0), "{sent:?}");
    // What the FIN acknowledged is complete; the rest of the state follows from the first segment's numbers.
    raw.send(port, ACK | FIN, 101, next.wrapping_add(1), b"");
    assert_eq!(raw.read(flow), (vec![], true));
    assert_eq!(raw.events().last(), Some(&closed(flow, CloseReason::Finished)));
}

#[test]
fn a_first_segment_that_carries_data_is_counted_so() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, port, syn) = call(&mut raw);
    let next = syn.sequence.wrapping_add(1);
    let answer = build::segment(raw.source, SocketAddr::new(FAR_V4, port), bare(SYN | ACK, 100, next));
    raw.engine.handle_packet(raw.now, &answer.unwrap());
    assert_eq!(raw.engine.write(raw.now, flow, b"early"), Ok(5));
    let sent = raw.drain();
    assert_eq!(
        (sent.len(), sent[0].sequence, &sent[0].payload[..]),
        (1, next, &b"early"[..])
    );
    // The application finishes before it acknowledges; all was sent, so that our end may follow at once.
    raw.send(port, ACK | FIN, 101, next, b"");
    raw.engine.finish(raw.now, flow).unwrap();
    let sent = raw.pass(SECOND / 10);
    assert!(sent.iter().any(|sent| sent.flags & FIN != 0), "{sent:?}");
}

#[test]
fn an_answer_without_a_window_scale_turns_it_off() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, port, syn) = call(&mut raw);
    let control = Control {
        window: 4000,
        ..bare(SYN | ACK, 100, syn.sequence.wrapping_add(1))
    };
    let answer = build::segment(raw.source, SocketAddr::new(FAR_V4, port), control).unwrap();
    raw.engine.handle_packet(raw.now, &answer);
    assert_eq!(
        usize::from(raw.drain()[0].window),
        RING - 1,
        "the ring as far as the field goes, unscaled"
    );
    assert_eq!(raw.engine.write(raw.now, flow, &[1; 9000]), Ok(9000));
    let sent: usize = raw.drain().iter().map(|sent| sent.payload.len()).sum();
    assert_eq!(sent, 4000, "the window of a SYN is not scaled, whatever follows");
    let challenge = raw.send(port, SYN, 9000, 0, b"");
    assert_eq!(challenge[0].window, u16::MAX, "nor is ours, ever");
}

#[test]
fn what_does_not_answer_the_syn_is_ignored_and_the_syn_repeated() {
    let mut raw = Raw::new(limits(), 16);
    let (_, port, syn) = call(&mut raw);
    let next = syn.sequence.wrapping_add(1);
    for (flags, acknowledgement) in [
        (ACK, next.wrapping_add(5)),
        (ACK, next),
        (SYN | ACK, next.wrapping_add(1)),
        (SYN | ACK | FIN, next),
        (SYN, 0),
        (RST, 0),
        (RST | ACK, syn.sequence),
    ] {
        assert_eq!(raw.send(port, flags, 100, acknowledgement, b"x"), [], "{flags}");
    }
    assert_eq!((raw.events(), raw.engine.flows()), (vec![], 1));
    let again = raw.pass(SECOND * 4);
    assert!(again.len() >= 2, "{again:?}");
    assert!(
        again
            .iter()
            .all(|sent| (sent.flags, sent.sequence) == (SYN, syn.sequence))
    );
    raw.send(port, SYN | ACK, 100, next, b"");
    assert!(matches!(raw.events()[..], [Event::Connected { .. }]));
}

#[test]
fn a_closed_port_refuses_and_gives_the_memory_back() {
    let mut raw = Raw::new(limits(), 2);
    for _ in 0..3 {
        let (flow, port, syn) = call(&mut raw);
        assert_eq!(raw.send(port, RST | ACK, 0, syn.sequence.wrapping_add(1), b""), []);
        assert_eq!(raw.events(), [closed(flow, CloseReason::ResetByApplication)]);
        assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
    }
}

#[test]
fn an_icmp_error_for_the_syn_ends_it_and_for_nothing_else() {
    for (caller, application) in [(FAR_V4, "10.0.0.1:1000"), (FAR_V6, "[fd00::1]:1000")] {
        let mut raw = Raw::new(limits(), 16);
        raw.source = application.parse().unwrap();
        let (flow, key) = raw.engine.connect(raw.now, caller, raw.source).unwrap();
        let sequence = raw.drain()[0].sequence;
        // The kernel's firewall quotes a SYN of ours with this sequence number.
        let quote = |raw: &mut Raw, key: FlowKey, sequence| {
            let syn = bare(SYN, sequence, 0);
            let syn = build::segment(key.destination, key.source, syn).unwrap();
            let icmp = build::unreachable(&syn, Unreachable::Prohibited).unwrap();
            raw.engine.handle_packet(raw.now, &icmp);
            raw.events()
        };
        assert_eq!(quote(&mut raw, key, sequence.wrapping_sub(1)), []);
        assert_eq!(quote(&mut raw, key, sequence), [closed(flow, CloseReason::Unreachable)]);
        let (flow, key) = raw.engine.connect(raw.now, caller, raw.source).unwrap();
        let sequence = raw.drain()[0].sequence;
        let answer = bare(SYN | ACK, 100, sequence.wrapping_add(1));
        let answer = build::segment(key.source, key.destination, answer).unwrap();
        raw.engine.handle_packet(raw.now, &answer);
        assert_eq!(
            quote(&mut raw, key, sequence),
            [Event::Connected { flow }],
            "a hint at most"
        );
    }
}

#[test]
fn who_is_not_answered_may_give_up_or_is_given_up() {
    let mut raw = Raw::new(limits(), 4);
    let (flow, _, _) = call(&mut raw);
    raw.engine.abort(raw.now, flow);
    assert!(raw.drain().iter().all(|sent| sent.flags & RST != 0));
    assert_eq!(raw.events(), [closed(flow, CloseReason::Aborted)]);
    let (flow, _, _) = call(&mut raw);
    raw.pass(LINGER + SECOND);
    assert_eq!(raw.events(), [closed(flow, CloseReason::TimedOut)]);
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
}

#[test]
fn flows_memory_and_addresses_are_bounded() {
    let mut raw = Raw::new(Limits { flows: 2, ..limits() }, 3);
    let application = raw.source;
    let connect = |raw: &mut Raw, caller: IpAddr, to: SocketAddr| raw.engine.connect(raw.now, caller, to).map(drop);
    assert_eq!(connect(&mut raw, FAR_V6, application), Err(ConnectError::Address));
    let nobody = SocketAddr::new("0.0.0.0".parse().unwrap(), 80);
    assert_eq!(connect(&mut raw, FAR_V4, nobody), Err(ConnectError::Address));
    assert_eq!(connect(&mut raw, FAR_V4, application), Ok(()));
    assert_eq!(connect(&mut raw, FAR_V4, application), Err(ConnectError::NoMemory));
    raw.send(80, SYN, 1, 0, b"");
    assert_eq!(connect(&mut raw, FAR_V4, application), Err(ConnectError::TooMany));
    let counters = raw.engine.counters();
    assert_eq!((counters.dropped_no_memory, counters.dropped_flow_limit), (1, 1));

    let mut raw = Raw::new(Limits { opened: 1, ..limits() }, 16);
    let (flow, _, _) = call(&mut raw);
    let again = raw.engine.connect(raw.now, FAR_V4, raw.source);
    assert_eq!(again.map(drop), Err(ConnectError::TooMany));
    raw.open(80, 1);
    raw.engine.abort(raw.now, flow);
    raw.drain();
    raw.events();
    call(&mut raw);
}

#[test]
fn one_tuple_is_used_once_and_timestamps_between_two_hosts_are_in_order() {
    let mut raw = Raw::new(limits(), 16);
    let (_, first, syn) = call(&mut raw);
    let (_, second, later) = call(&mut raw);
    assert_ne!(first, second);
    assert_eq!(syn.timestamp, later.timestamp, "of one moment");
    raw.now += SECOND;
    let (_, _, latest) = call(&mut raw);
    assert_eq!(latest.timestamp, syn.timestamp.map(|at| at.wrapping_add(1000)));
    raw.source = "10.0.0.2:1000".parse().unwrap();
    assert_ne!(
        call(&mut raw).2.timestamp,
        latest.timestamp,
        "another host learns nothing"
    );
}

#[test]
fn data_before_our_answer_left_waits_for_its_repetition() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, port, syn) = call(&mut raw);
    let next = syn.sequence.wrapping_add(1);
    let far = SocketAddr::new(FAR_V4, port);
    for (flags, sequence, payload) in [(SYN | ACK, 100, 0), (ACK, 101, 60_000), (ACK, 60_101, 60_000)] {
        let mut packet = build::segment(raw.source, far, bare(flags, sequence, next)).unwrap();
        packet.extend_from_slice(&vec![7; payload]);
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        raw.engine.handle_packet(raw.now, &packet);
    }
    assert_eq!(raw.drain()[0].acknowledgement, 101);
    raw.send(port, ACK, 101, next, b"again");
    assert_eq!(raw.read(flow), (b"again".to_vec(), false));
}

#[test]
fn a_silent_flow_shows_signs_of_life_and_still_ends() {
    let mut raw = Raw::new(limits(), 16);
    let (idle, port, next) = connected(&mut raw);
    let signs = raw.pass(SECOND * 121);
    let [sign] = &signs[..] else { panic!("{signs:?}") };
    assert_eq!(
        (sign.flags, sign.sequence, sign.acknowledgement),
        (ACK, next.wrapping_sub(1), 101)
    );
    assert_eq!(raw.send(port, ACK, 101, next, b""), [], "its answer is not answered");
    raw.source.set_port(1001);
    let (half, port, next) = connected(&mut raw);
    raw.engine.finish(raw.now, half).unwrap();
    raw.drain();
    let end = next.wrapping_add(1);
    raw.send(port, ACK, 101, end, b"");
    let mut signs = 0;
    for _ in 0..LINGER.as_secs() + 1 {
        for sign in raw
            .pass(SECOND)
            .iter()
            .filter(|sign| sign.sequence == end.wrapping_sub(1))
        {
            assert_eq!(sign.flags, ACK);
            signs += 1;
            raw.send(port, ACK, 101, end, b"");
        }
    }
    assert!((14..=15).contains(&signs), "{signs}: one each 20 s");
    assert_eq!(raw.events(), [closed(half, CloseReason::TimedOut)]);
    let live: Vec<_> = raw.engine.views().map(|view| view.flow).collect();
    assert_eq!(live, [idle]);
}
