//! What one authenticated peer may cost us: tunnels at a time, and CONNECTs a second over all of them.
//!
//! A peer is a certificate (its public key), not an address: members behind one NAT do not share an allowance, and a member
//! that opens more connections does not gain one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use rustc_hash::FxHashMap;

/// SHA-256 of a certificate's public key.
type Spki = [u8; 32];

/// The peers that were seen lately. Lives on one shard's thread.
#[derive(Debug)]
pub(super) struct Peers {
    tunnels: usize,
    per_second: u32,
    seen: RefCell<FxHashMap<Spki, Rc<RefCell<Rate>>>>,
}

/// One tunnel's share of its peer's allowance; dropping it gives the tunnel's place back.
#[derive(Debug)]
pub(super) struct Allowance(Rc<RefCell<Rate>>);

/// Requests a second, with bursts of twice as many.
#[derive(Debug)]
struct Rate {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Peers {
    /// `tunnels` at a time and `per_second` CONNECTs for each peer.
    pub(super) fn new(tunnels: usize, per_second: u32) -> Self {
        Self {
            tunnels,
            per_second,
            seen: RefCell::default(),
        }
    }

    /// A place for one more tunnel of this peer, if it may have one.
    pub(super) fn enter(&self, peer: Spki, now: Instant) -> Option<Allowance> {
        let mut seen = self.seen.borrow_mut();
        if seen.len() >= MAX_IDLE_PEERS {
            // An allowance that is used up is remembered, or a reconnect would refill it.
            seen.retain(|_, rate| Rc::strong_count(rate) > 1 || !rate.borrow_mut().is_full(now));
        }
        let rate = seen
            .entry(peer)
            .or_insert_with(|| Rc::new(RefCell::new(Rate::new(self.per_second, now))));
        // One count is the table's own.
        (Rc::strong_count(rate) <= self.tunnels).then(|| Allowance(rate.clone()))
    }
}

impl Allowance {
    /// Takes one CONNECT, if there is one left.
    pub(super) fn takes(&self, now: Instant) -> bool {
        self.0.borrow_mut().takes(now)
    }
}

impl Rate {
    fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self {
            per_second,
            left: per_second * 2.0,
            at: now,
        }
    }

    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.per_second * 2.0);
        self.at = now;
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.per_second * 2.0
    }

    fn takes(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// Above so many peers, those that are gone and rested are forgotten.
const MAX_IDLE_PEERS: usize = 1024;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn tunnels_of_one_peer_share_one_allowance() {
        let (peers, now) = (Peers::new(2, 10), Instant::now());
        let (first, second) = (peers.enter([1; 32], now).unwrap(), peers.enter([1; 32], now).unwrap());
        assert!(peers.enter([1; 32], now).is_none(), "a third tunnel");
        let taken = (0..100).filter(|_| first.takes(now) || second.takes(now)).count();
        assert_eq!(taken, 20, "a burst of twice the rate");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| second.takes(later)).count(), 10);
        assert!(peers.enter([2; 32], now).unwrap().takes(now), "another peer");
    }

    #[test]
    fn a_reconnect_refills_nothing() {
        let (peers, now) = (Peers::new(1, 1), Instant::now());
        let first = peers.enter([1; 32], now).unwrap();
        while first.takes(now) {}
        drop(first);
        for peer in 0..=u16::try_from(MAX_IDLE_PEERS).unwrap() {
            let mut key = [0; 32];
            key[30..].copy_from_slice(&peer.to_be_bytes());
            drop(peers.enter(key, now));
        }
        assert!(!peers.enter([1; 32], now).unwrap().takes(now));
        assert!(peers.seen.borrow().len() <= MAX_IDLE_PEERS, "the table is bounded");
    }
}
