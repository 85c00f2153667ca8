//! Whether a thread still makes progress: it beats, the watchdog looks when it last did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by the thread that beats and the one that looks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from `start` to the last beat.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last: Arc::default(),
        }
    }
}

impl Pulse {
    /// Beats for as long as the runtime that this is spawned on gives it turns.
    pub async fn keep(self) {
        let mut tick = tokio::time::interval(BEAT);
        loop {
            tick.tick().await;
            self.beat(Instant::now());
        }
    }

    /// How long ago the last beat was.
    pub fn age(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        now.duration_since(self.start).saturating_sub(last)
    }

    fn beat(&self, now: Instant) {
        let passed = now.duration_since(self.start).as_millis();
        self.last
            .store(u64::try_from(passed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// How often a thread beats.
const BEAT: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_last_beat() {
        let pulse = Pulse::default();
        let at = |seconds| pulse.start + Duration::from_secs(seconds);
        assert_eq!(pulse.age(at(3)), Duration::from_secs(3));
        pulse.beat(at(4));
        assert_eq!(pulse.age(at(5)), Duration::from_secs(1));
        assert_eq!(pulse.age(at(4)), Duration::ZERO);
    }
}
