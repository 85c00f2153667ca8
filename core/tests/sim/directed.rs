//! One test for each rule that a random run may miss.

use std::time::Duration;

use mesh_core::engine::{CloseReason, Event, FlowError, Limits, Refusal};

use crate::raw::{ACK, FIN, RST, Raw, SYN, far, limits};
use crate::run::{LINGER, RING};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_held_syn_is_not_answered_and_its_repetition_opens_nothing() {
    let mut raw = Raw::new(limits(), 16);
    let flow = raw.open(80, 100);
    for _ in 0..3 {
        assert_eq!(raw.pass(SECOND), []);
        assert_eq!(raw.send(80, SYN, 100, 0, b""), []);
    }
    assert_eq!(
        (raw.events(), raw.engine.flows(), raw.engine.half_open()),
        (vec![], 1, 1)
    );
    raw.engine.accept(raw.now, flow).unwrap();
    assert_eq!(raw.drain().len(), 1);
    assert_eq!(raw.engine.half_open(), 0);
}

#[test]
fn a_new_attempt_on_a_held_tuple_replaces_the_old_one() {
    let mut raw = Raw::new(limits(), 16);
    let old = raw.open(80, 100);
    assert_eq!(raw.send(80, SYN, 200, 0, b""), []);
    let events = raw.events();
    let [
        Event::Closed {
            flow,
            reason: CloseReason::ResetByApplication,
        },
        Event::Opened { flow: new, .. },
    ] = events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!(flow, old);
    assert_ne!(new, old);
    assert_eq!(raw.engine.accept(raw.now, old), Err(FlowError::Gone));
    assert_eq!(raw.engine.accept(raw.now, new), Ok(()));
    assert_eq!(raw.drain()[0].acknowledgement, 201);
}

#[test]
fn a_reset_ends_a_held_flow_and_only_one_that_fits() {
    let mut raw = Raw::new(limits(), 16);
    let flow = raw.open(80, 100);
    raw.send(80, RST, 5000, 0, b"");
    assert_eq!(raw.events(), []);
    raw.send(80, RST, 101, 0, b"");
    assert_eq!(
        raw.events(),
        [Event::Closed {
            flow,
            reason: CloseReason::ResetByApplication
        }]
    );
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
}

#[test]
fn half_open_flows_are_bounded_in_all_and_by_destination() {
    let mut raw = Raw::new(limits(), 16);
    for port in 0..5 {
        raw.source.set_port(1000 + port);
        raw.send(80, SYN, 1, 0, b"");
    }
    assert_eq!(
        (raw.engine.half_open(), raw.engine.counters().dropped_half_open),
        (3, 2)
    );
    for port in 0..3 {
        raw.source.set_port(2000 + port);
        assert_eq!(raw.send(81, SYN, 1, 0, b""), [], "dropped in silence");
    }
    assert_eq!(
        (raw.engine.half_open(), raw.engine.counters().dropped_half_open),
        (4, 4)
    );
    let opened = raw.events();
    let Event::Opened { flow, .. } = opened[0] else {
        panic!("{opened:?}")
    };
    raw.engine.refuse(raw.now, flow, Refusal::Refused);
    assert_eq!(raw.drain()[0].flags, RST | ACK);
    raw.source.set_port(3000);
    raw.open(80, 1);
}

#[test]
fn all_flows_are_bounded() {
    let mut raw = Raw::new(Limits { flows: 2, ..limits() }, 16);
    for port in 0..3 {
        raw.source.set_port(1000 + port);
        if port < 2 {
            raw.connect(80);
        } else {
            assert_eq!(raw.send(80, SYN, 1, 0, b""), []);
        }
    }
    assert_eq!((raw.engine.flows(), raw.engine.counters().dropped_flow_limit), (2, 1));
}

#[test]
fn without_memory_the_application_is_refused() {
    let mut raw = Raw::new(limits(), 3);
    raw.connect(80);
    raw.source.set_port(1001);
    let flow = raw.open(80, 100);
    assert_eq!(raw.engine.accept(raw.now, flow), Err(FlowError::Gone));
    assert_eq!(raw.drain()[0].flags, RST | ACK);
    assert_eq!(
        raw.events(),
        [Event::Closed {
            flow,
            reason: CloseReason::Aborted
        }]
    );
    assert_eq!(raw.engine.counters().dropped_no_memory, 1);
}

#[test]
fn strays_are_reset_within_a_budget() {
    let mut raw = Raw::new(limits(), 16);
    let answer = raw.send(80, ACK, 1, 777, b"x");
    assert_eq!((answer[0].flags, answer[0].sequence), (RST, 777));
    assert_eq!(raw.send(80, RST, 1, 0, b""), []);
    let answers: usize = (0..1000).map(|_| raw.send(80, ACK, 1, 777, b"x").len()).sum();
    assert!(answers < 300, "{answers}");
    raw.now += SECOND;
    assert_eq!(raw.send(80, ACK, 1, 777, b"x").len(), 1);
}

#[test]
fn more_than_the_ring_holds_is_neither_taken_nor_fatal() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, next) = raw.connect(80);
    // Three times 60,000 bytes in one batch, before the engine can say anything.
    let mut sequence = 101_u32;
    for _ in 0..3 {
        let control = mesh_core::packet::build::Control {
            flags: ACK,
            sequence,
            acknowledgement: next,
            window: 512,
        };
        let mut packet = mesh_core::packet::build::segment(raw.source, far(80), control).unwrap();
        packet.extend_from_slice(&[7; 60_000]);
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        raw.engine.handle_packet(raw.now, &packet);
        sequence += 60_000;
    }
    raw.drain();
    let (bytes, end) = raw.read(flow);
    assert_eq!((bytes.len(), end), (RING, false));
}

#[test]
fn a_fin_behind_the_window_does_not_end_the_stream_early() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, next) = raw.connect(80);
    // Fills the ring but for 35 bytes, and makes the engine say so.
    let filled = u32::try_from(RING - 35).unwrap();
    for (at, len) in [(0, 40_000), (40_000, filled - 40_000)] {
        raw.send(80, ACK, 101 + at, next, &vec![1; usize::try_from(len).unwrap()]);
    }
    raw.pass(SECOND);
    // 100 bytes and the FIN: 35 fit at most.
    raw.send(80, ACK | FIN, 101 + filled, next, &[2; 100]);
    let acknowledged = raw.pass(SECOND).last().unwrap().acknowledgement;
    let (bytes, end) = raw.read(flow);
    assert!(!end, "the end was not reached");
    let received = u32::try_from(bytes.len()).unwrap();
    assert!(received <= filled + 35);
    assert_eq!(acknowledged, 101 + received);
    raw.pass(SECOND);
    // The kernel repeats what was not acknowledged.
    let rest = usize::try_from(filled + 100 - received).unwrap();
    raw.send(80, ACK | FIN, 101 + received, next, &vec![2; rest]);
    let (bytes, end) = raw.read(flow);
    assert_eq!((bytes.len(), end), (rest, true));
}

#[test]
fn what_is_written_and_finished_before_the_handshake_is_done_comes_after_it() {
    let mut raw = Raw::new(limits(), 16);
    let flow = raw.open(80, 100);
    raw.engine.accept(raw.now, flow).unwrap();
    assert_eq!(raw.engine.write(raw.now, flow, b"SSH-2.0"), Ok(0));
    let answer = raw.drain();
    let next = answer[0].sequence.wrapping_add(1);
    raw.send(80, ACK, 101, next, b"");
    assert_eq!(raw.events(), [Event::Writable { flow }]);
    assert_eq!(raw.engine.write(raw.now, flow, b"SSH-2.0"), Ok(7));
    assert_eq!(raw.engine.finish(raw.now, flow), Ok(()));
    assert_eq!(raw.engine.write(raw.now, flow, b"more"), Err(FlowError::Finished));
    let sent = raw.drain();
    assert_eq!((&sent[0].payload[..], sent[0].flags & FIN), (&b"SSH-2.0"[..], FIN));

    raw.source.set_port(1001);
    let flow = raw.open(80, 100);
    raw.engine.accept(raw.now, flow).unwrap();
    assert_eq!(raw.engine.finish(raw.now, flow), Ok(()));
    let answer = raw.drain();
    assert_eq!(answer.len(), 1, "no FIN before the handshake is done");
    let sent = raw.send(80, ACK, 101, answer[0].sequence.wrapping_add(1), b"");
    assert_eq!(sent[0].flags & FIN, FIN);
}

#[test]
fn an_abort_sends_its_reset_and_forgets_the_flow_at_once() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, next) = raw.connect(80);
    raw.engine.abort(raw.now, flow);
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
    let sent = raw.drain();
    assert_eq!((sent[0].flags & RST, sent[0].sequence, sent.len()), (RST, next, 1));
    assert_eq!(
        raw.events(),
        [Event::Closed {
            flow,
            reason: CloseReason::Aborted
        }]
    );
    assert_eq!(raw.engine.write(raw.now, flow, b"x"), Err(FlowError::Gone));
    raw.engine.abort(raw.now, flow);
    raw.engine.refuse(raw.now, flow, Refusal::Denied);
    assert_eq!((raw.drain(), raw.events()), (vec![], vec![]));
}

#[test]
fn a_reset_while_the_syn_ack_is_under_way_ends_the_flow() {
    let mut raw = Raw::new(limits(), 16);
    let flow = raw.open(80, 100);
    raw.engine.accept(raw.now, flow).unwrap();
    raw.drain();
    raw.send(80, RST, 101, 0, b"");
    assert_eq!(
        raw.events(),
        [Event::Closed {
            flow,
            reason: CloseReason::ResetByApplication
        }]
    );
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
}

#[test]
fn a_syn_on_a_live_flow_is_challenged_and_a_real_restart_gets_through() {
    let mut raw = Raw::new(limits(), 16);
    let (old, next) = raw.connect(80);
    let challenge = raw.send(80, SYN, 9000, 0, b"");
    assert_eq!(
        (challenge[0].flags, challenge[0].sequence, challenge[0].acknowledgement),
        (ACK, next, 101)
    );
    assert_eq!(raw.events(), []);
    // A kernel that does not know the old connection answers so, and then repeats its SYN.
    raw.send(80, RST, 101, 0, b"");
    assert_eq!(
        raw.events(),
        [Event::Closed {
            flow: old,
            reason: CloseReason::ResetByApplication
        }]
    );
    raw.open(80, 9000);
}

#[test]
fn a_port_that_is_used_again_in_last_ack_opens_a_new_flow() {
    let mut raw = Raw::new(limits(), 16);
    let (old, next) = raw.connect(80);
    raw.send(80, ACK | FIN, 101, next, b"bye");
    raw.engine.finish(raw.now, old).unwrap();
    raw.drain();
    raw.events();
    assert_eq!(raw.send(80, SYN, 9000, 0, b""), []);
    let events = raw.events();
    let [Event::Opened { flow: new, .. }] = events[..] else {
        panic!("{events:?}")
    };
    // What came before can still be read.
    assert_eq!(raw.read(old), (b"bye".to_vec(), true));
    assert_eq!(
        raw.events(),
        [Event::Closed {
            flow: old,
            reason: CloseReason::Finished
        }]
    );
    raw.engine.accept(raw.now, new).unwrap();
    assert_eq!(raw.drain()[0].acknowledgement, 9001);
}

#[test]
fn after_both_fins_unread_bytes_wait_for_their_reader() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, next) = raw.connect(80);
    raw.engine.finish(raw.now, flow).unwrap();
    assert_eq!(raw.drain()[0].flags & FIN, FIN);
    raw.send(80, ACK | FIN, 101, next.wrapping_add(1), b"late");
    // Longer than smoltcp's TIME-WAIT, which would clear the ring.
    let last = raw.pass(SECOND * 30);
    assert_eq!(last.last().unwrap().acknowledgement, 101 + 4 + 1);
    assert_eq!(raw.read(flow), (b"late".to_vec(), true));
    assert_eq!(
        raw.events().last(),
        Some(&Event::Closed {
            flow,
            reason: CloseReason::Finished
        })
    );
    assert_eq!((raw.engine.flows(), raw.engine.deadlines()), (0, 0));
}

#[test]
fn what_closed_on_one_side_or_never_answers_is_given_up() {
    let mut raw = Raw::new(limits(), 16);
    let held = raw.open(80, 1);
    raw.source.set_port(1001);
    let (half, next) = raw.connect(81);
    raw.send(81, ACK | FIN, 101, next, b"");
    raw.source.set_port(1002);
    let (idle, _) = raw.connect(82);
    raw.events();
    raw.pass(LINGER + SECOND);
    let mut events = raw.events();
    events.sort_by_key(|event| format!("{event:?}"));
    let timed_out = |flow| Event::Closed {
        flow,
        reason: CloseReason::TimedOut,
    };
    assert_eq!(events, [timed_out(held), timed_out(half)]);
    assert_eq!(
        raw.engine.views().map(|view| view.flow).collect::<Vec<_>>(),
        [idle],
        "an idle flow may live for ever"
    );
}

#[test]
fn timestamps_follow_the_clock_that_is_given() {
    let mut raw = Raw::new(limits(), 16);
    let flow = raw.open(80, 100);
    raw.engine.accept(raw.now, flow).unwrap();
    let answer = raw.drain();
    let first = answer[0].timestamp.expect("our SYN-ACK carries a timestamp");
    raw.send(80, ACK, 101, answer[0].sequence.wrapping_add(1), b"");
    raw.now += SECOND * 3;
    raw.engine.write(raw.now, flow, b"x").unwrap();
    assert_eq!(raw.drain()[0].timestamp, Some(first.wrapping_add(3000)));
}

#[test]
fn the_window_closes_when_nobody_reads_and_opens_again() {
    let mut raw = Raw::new(limits(), 16);
    let (flow, next) = raw.connect(80);
    let mut sequence = 101;
    for len in [40_000, RING - 40_000] {
        raw.send(80, ACK, sequence, next, &vec![1; len]);
        sequence += u32::try_from(len).unwrap();
        raw.pass(SECOND);
    }
    let probe = raw.send(80, ACK, sequence, next, b"x");
    assert_eq!((probe[0].window, probe[0].acknowledgement), (0, sequence));
    assert_eq!(raw.read(flow).0.len(), RING);
    let update = raw.drain();
    assert_eq!(usize::from(update.last().unwrap().window) << 1, RING);
}

#[test]
fn datagrams_that_nobody_polls_are_bounded() {
    let mut raw = Raw::new(Limits { events: 4, ..limits() }, 16);
    let packet =
        mesh_core::packet::build::datagram(raw.source, far(53), b"?", mesh_core::packet::build::Checksum::Full);
    for _ in 0..10 {
        raw.engine.handle_packet(raw.now, packet.as_ref().unwrap());
    }
    raw.send(80, SYN, 1, 0, b"");
    assert_eq!(raw.engine.counters().dropped_events_full, 7);
    assert_eq!((raw.events().len(), raw.engine.flows()), (4, 0));
}

#[test]
fn what_is_not_ours_is_counted_and_ignored() {
    let mut raw = Raw::new(limits(), 16);
    raw.engine.handle_packet(raw.now, &[]);
    raw.engine.handle_packet(raw.now, &[0x45; 10]);
    let mut icmp = mesh_core::packet::build::segment(
        raw.source,
        far(1),
        mesh_core::packet::build::Control {
            flags: SYN,
            sequence: 0,
            acknowledgement: 0,
            window: 0,
        },
    )
    .unwrap();
    icmp[9] = 1;
    raw.engine.handle_packet(raw.now, &icmp);
    let counters = raw.engine.counters();
    assert_eq!((counters.packets_in, counters.malformed, counters.not_ours), (3, 2, 1));
    assert_eq!((raw.drain(), raw.events()), (vec![], vec![]));
}
