use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::packet::Protocol;

const IDLE: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits {
    flows: 3,
    datagrams: 4,
    bytes: 100,
    total_bytes: 150,
    idle: IDLE,
};

fn key(number: u8) -> FlowKey {
    FlowKey {
        protocol: Protocol::Udp,
        source: SocketAddr::from(([10, 0, 0, 1], 1000 + u16::from(number))),
        destination: SocketAddr::from(([10, 0, 0, 2], 53)),
    }
}

fn at(seconds: u64) -> Instant {
    Duration::from_secs(seconds)
}

fn bytes(first: u8, length: usize) -> Bytes {
    vec![first; length].into()
}

/// The first byte of everything that waits on a flow.
fn drain(flows: &mut Flows, flow: FlowId) -> Vec<u8> {
    std::iter::from_fn(|| flows.next(flow))
        .map(|payload| payload[0])
        .collect()
}

#[test]
fn the_oldest_give_way_and_the_order_is_kept() {
    let mut flows = Flows::new(LIMITS);
    let taken = flows.take(at(0), key(1), bytes(0, 1));
    assert!(taken.opened && taken.evicted.is_none());
    for number in 1..6 {
        assert!(!flows.take(at(0), key(1), bytes(number, 1)).opened);
    }
    assert_eq!(drain(&mut flows, taken.flow), [2, 3, 4, 5], "at most 4 wait");
    for number in 0..3 {
        flows.take(at(0), key(1), bytes(number, 40));
    }
    assert_eq!(drain(&mut flows, taken.flow), [1, 2], "at most 100 bytes wait");
    flows.take(at(0), key(1), bytes(0, 1));
    flows.take(at(0), key(1), bytes(1, 120));
    assert_eq!(drain(&mut flows, taken.flow), [1], "one waits, however large");
    assert_eq!(flows.dropped(), 4);
}

#[test]
fn one_flow_does_not_take_what_is_for_all() {
    let mut flows = Flows::new(LIMITS);
    let first = flows.take(at(0), key(1), bytes(1, 90)).flow;
    let second = flows.take(at(0), key(2), bytes(2, 50)).flow;
    flows.take(at(0), key(2), bytes(3, 20));
    assert_eq!(drain(&mut flows, second), [3], "its own oldest went, not the other's");
    flows.take(at(0), key(2), bytes(4, 20));
    flows.take(at(0), key(2), bytes(5, 70));
    assert_eq!(drain(&mut flows, second), [4], "there is no room at all");
    assert_eq!(drain(&mut flows, first), [1]);
    assert_eq!(flows.waiting_bytes(), 0);
}

#[test]
fn what_is_idle_ends_and_what_passes_keeps_it() {
    let mut flows = Flows::new(LIMITS);
    let first = flows.take(at(0), key(1), bytes(0, 1)).flow;
    let second = flows.take(at(1), key(2), bytes(0, 1)).flow;
    assert_eq!(flows.next_expiry(), Some(at(60)));
    assert_eq!(flows.expire(at(59)), None);
    flows.touch(at(30), first);
    flows.touch(at(20), first);
    assert_eq!(flows.expire(at(61)), Some(second));
    assert!(flows.lives(first) && !flows.lives(second));
    assert_eq!(flows.expire(at(89)), None);
    assert_eq!(flows.expire(at(90)), Some(first));
    assert_eq!((flows.len(), flows.next_expiry(), flows.waiting_bytes()), (0, None, 0));
    let again = flows.take(at(91), key(1), bytes(0, 1));
    assert!(again.opened && again.flow != first);
}

#[test]
fn a_new_flow_takes_the_place_of_the_idlest() {
    let mut flows = Flows::new(LIMITS);
    let ids: Vec<FlowId> = (1..=3)
        .map(|number| flows.take(at(u64::from(number)), key(number), bytes(0, 1)).flow)
        .collect();
    flows.touch(at(10), ids[0]);
    let fourth = flows.take(at(11), key(4), bytes(0, 1));
    assert_eq!(fourth.evicted, Some(ids[1]));
    assert!(flows.lives(ids[0]) && !flows.lives(ids[1]));
    assert_eq!(flows.next(ids[1]), None);
}

proptest! {
    #[test]
    fn bounds_hold_and_nothing_is_reordered(
        steps in prop::collection::vec((0_u8..6, 0_usize..120, 0_u8..5, 0_u64..40), 1..200),
    ) {
        let mut flows = Flows::new(LIMITS);
        let (mut now, mut number) = (0, 0_u32);
        let mut last: BTreeMap<FlowId, u32> = BTreeMap::new();
        for (of, length, what, seconds) in steps {
            now += seconds;
            while flows.expire(at(now)).is_some() {}
            let payload = [&number.to_be_bytes()[..], &vec![0; length]].concat();
            number += 1;
            let taken = flows.take(at(now), key(of), payload.into());
            prop_assert!(flows.lives(taken.flow));
            prop_assert!(taken.evicted.is_none_or(|evicted| !flows.lives(evicted)));
            match what {
                0 => flows.remove(taken.flow),
                1 | 2 => while let Some(payload) = flows.next(taken.flow) {
                    let read = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    let before = last.insert(taken.flow, read);
                    prop_assert!(before.is_none_or(|before| before < read));
                },
                _ => {}
            }
            prop_assert!(flows.len() <= LIMITS.flows);
            prop_assert!(flows.waiting_bytes() <= LIMITS.total_bytes);
            prop_assert!(flows.next_expiry().is_none_or(|next| next > at(now)));
        }
    }
}
