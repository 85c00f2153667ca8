//! One direction of a link: latency in whole milliseconds; loss, repetition and reordering by seed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::random::Random;

const LATENCY: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub struct Link {
    random: Random,
    lossy: bool,
    flying: BTreeMap<(Duration, u64), Vec<u8>>,
    sent: u64,
}

impl Link {
    pub fn new(seed: u64, lossy: bool) -> Self {
        Self {
            random: Random::new(seed),
            lossy,
            flying: BTreeMap::new(),
            sent: 0,
        }
    }

    pub fn send(&mut self, now: Duration, packet: Vec<u8>) {
        if !self.lossy {
            return self.fly(now + LATENCY, packet);
        }
        if self.random.chance(3) {
            return;
        }
        if self.random.chance(2) {
            self.fly(now + LATENCY, packet.clone());
        }
        let late = if self.random.chance(5) { self.random.below(5) } else { 0 };
        self.fly(now + LATENCY + Duration::from_millis(late), packet);
    }

    /// The next packet that has arrived.
    pub fn receive(&mut self, now: Duration) -> Option<Vec<u8>> {
        let entry = self.flying.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// When the next packet arrives.
    pub fn next_arrival(&self) -> Option<Duration> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    fn fly(&mut self, at: Duration, packet: Vec<u8>) {
        self.sent += 1;
        self.flying.insert((at, self.sent), packet);
    }
}
