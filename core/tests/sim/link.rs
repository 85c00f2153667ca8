//! One direction of a link: latency in whole milliseconds; loss, repetition and reordering by seed.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_core::packet::{Flags, Packet, Transport};

use crate::random::Random;

const LATENCY: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Link {
    random: Random,
    lossy: bool,
    flying: BTreeMap<(Duration, u64), Vec<u8>>,
    sent: u64,
}

impl Link {
    pub(crate) fn new(seed: u64, lossy: bool) -> Self {
        Self {
            random: Random::new(seed),
            lossy,
            flying: BTreeMap::new(),
            sent: 0,
        }
    }

    pub(crate) fn send(&mut self, now: Duration, packet: Vec<u8>) {
        if !self.lossy {
            return self.fly(now + LATENCY, packet);
        }
        // smoltcp forgets the timer of a FIN when the ACK before it is repeated; a lost one would hang its client.
        if self.random.chance(3) && !is_fin(&packet) {
            return;
        }
        if self.random.chance(2) {
            self.fly(now + LATENCY, packet.clone());
        }
        let late = if self.random.chance(5) { self.random.below(5) } else { 0 };
        self.fly(now + LATENCY + Duration::from_millis(late), packet);
    }

    /// The next packet that has arrived.
    pub(crate) fn receive(&mut self, now: Duration) -> Option<Vec<u8>> {
        let entry = self.flying.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// When the next packet arrives.
    pub(crate) fn next_arrival(&self) -> Option<Duration> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    fn fly(&mut self, at: Duration, packet: Vec<u8>) {
        self.sent += 1;
        self.flying.insert((at, self.sent), packet);
    }
}

fn is_fin(packet: &[u8]) -> bool {
    match Packet::parse(packet).map(|packet| packet.transport()) {
        Ok(Transport::Tcp(tcp)) => tcp.flags().has(Flags::FIN),
        _ => false,
    }
}
