//! Bounds on calls that come before authentication: joins, recoveries and calls with a token per second, in all and by source address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tonic::Code;

use crate::error::Refusal;

/// Calls per second and burst, in all.
const ALL: (f64, f64) = (100.0, 500.0);
/// Calls per second and burst, of one source.
const ONE: (f64, f64) = (5.0, 50.0);
/// Sources that are remembered; when more come, those with full buckets are forgotten.
const SOURCES: usize = 10_000;

/// Token buckets.
pub struct Limits {
    state: Mutex<State>,
}

struct State {
    all: Bucket,
    sources: HashMap<IpAddr, Bucket>,
}

struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn full(burst: f64, now: Instant) -> Self {
        Self { level: burst, at: now }
    }

    fn take(&mut self, (rate, burst): (f64, f64), now: Instant) -> bool {
        self.refill((rate, burst), now);
        let fits = self.level >= 1.0;
        if fits {
            self.level -= 1.0;
        }
        fits
    }

    fn refill(&mut self, (rate, burst): (f64, f64), now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.level = (self.level + gained).min(burst);
        self.at = now;
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                all: Bucket::full(ALL.1, Instant::now()),
                sources: HashMap::new(),
            }),
        }
    }
}

impl Limits {
    /// Lets a call from this source through, or says to come again later.
    pub fn admit(&self, source: IpAddr, now: Instant) -> Result<(), Refusal> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let source = aggregate(source);
        if state.sources.len() >= SOURCES && !state.sources.contains_key(&source) {
            state.sources.retain(|_, bucket| {
                bucket.refill(ONE, now);
                bucket.level < ONE.1
            });
        }
        let room = state.sources.len() < SOURCES || state.sources.contains_key(&source);
        let fits = room
            && state
                .sources
                .entry(source)
                .or_insert_with(|| Bucket::full(ONE.1, now))
                .take(ONE, now)
            && state.all.take(ALL, now);
        if fits {
            return Ok(());
        }
        Err(Refusal::new(
            Code::ResourceExhausted,
            "rate-limited",
            "too many joins, or calls with a token, at once; wait a few seconds and try again",
        ))
    }
}

/// One IPv6 site counts as one source.
fn aggregate(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_source_is_bounded_and_recovers() {
        let limits = Limits::default();
        let now = Instant::now();
        let source: IpAddr = "10.0.0.1".parse().unwrap();
        let passed = (0..100).filter(|_| limits.admit(source, now).is_ok()).count();
        assert_eq!(passed, 50);
        assert!(limits.admit("10.0.0.2".parse().unwrap(), now).is_ok());
        assert!(limits.admit(source, now + Duration::from_secs(1)).is_ok());
    }
}
