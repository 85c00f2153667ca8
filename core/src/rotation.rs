//! When a certificate is renewed, and how long to wait after a failure.

use std::time::Duration;

/// Seconds since the Unix epoch.
pub type UnixTime = u64;

/// When to renew a certificate that is valid from `not_before` to `not_after`: at half life, spread by `seed` over the next
/// twentieth of the lifetime, so that machines that joined together do not renew together.
pub fn renew_at(not_before: UnixTime, not_after: UnixTime, seed: u64) -> UnixTime {
    let life = not_after.saturating_sub(not_before);
    not_before + life / 2 + seed % (life / 20 + 1)
}

/// How long to wait before attempt `failures + 1`: full-jitter exponential between 1 s and at most 150 s, and never past the
/// last tenth of what is left of the certificate's life, unless that is over.
pub fn retry_after(failures: u32, now: UnixTime, not_after: UnixTime, seed: u64) -> Duration {
    let most = 1000u64.saturating_mul(1 << failures.min(8)).min(150_000);
    let wait = 1000 + seed % most.max(1);
    let left = not_after.saturating_sub(now) * 1000;
    let bound = if left == 0 { wait } else { (left / 10).max(1000) };
    Duration::from_millis(wait.min(bound))
}

/// How long to wait before connecting again after `failures` in a row: full jitter between 10 ms and 15 s.
pub fn reconnect_after(failures: u32, seed: u64) -> Duration {
    let most = 20u64.saturating_mul(1 << failures.min(10)).min(15_000);
    Duration::from_millis(10 + seed % most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_is_at_half_life(start in 0u64..1 << 40, life in 0u64..1 << 20, seed: u64) {
            let at = renew_at(start, start + life, seed);
            prop_assert!(at >= start + life / 2 && at <= start + life / 2 + life / 20 + 1);
        }

        #[test]
        fn retries_are_bounded(failures: u32, left in 0u64..100_000, seed: u64) {
            let wait = retry_after(failures, 1000, 1000 + left, seed);
            prop_assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(151));
            prop_assert!(reconnect_after(failures, seed) <= Duration::from_millis(15_010));
        }
    }
}
