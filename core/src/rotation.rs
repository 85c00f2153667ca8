//! When a certificate is renewed, and how long to wait after a failure.

use std::time::Duration;

use crate::mix::Mix;

/// Seconds since the Unix epoch.
pub type UnixTime = u64;

/// Certificate authorities date `NotBefore` back by this many seconds, against clocks that are behind.
const BACK_DATED: u64 = 300;
/// The longest pause between two attempts, in seconds.
const MAX_PAUSE: u64 = 150;
/// The shortest one, in milliseconds: full jitter alone could ask again at once.
const MIN_PAUSE_MS: u64 = 100;

/// When to renew a certificate that is valid from `not_before` to `not_after`: at half life (of what is left after `issued`),
/// spread by up to 5 % of the lifetime by `seed`; never later than 90 %.
///
/// `issued` is `not_before` plus the 300 s by which it is dated back; a certificate that lives no longer than that is taken
/// as not dated back at all.
pub fn renew_at(not_before: UnixTime, not_after: UnixTime, seed: u64) -> UnixTime {
    let whole = not_after.saturating_sub(not_before);
    let issued = if whole > BACK_DATED {
        not_before.saturating_add(BACK_DATED)
    } else {
        not_before
    };
    let lifetime = not_after.saturating_sub(issued);
    let spread = Mix::new(seed).below(lifetime / 20 + 1);
    let after = (lifetime / 2 + spread).min(lifetime - lifetime / 10);
    issued.saturating_add(after)
}

/// How long to wait before attempt `failures + 1`: full-jitter exponential, 1 s to 150 s, never past `not_after`.
pub fn retry_after(failures: u32, now: UnixTime, not_after: UnixTime, seed: u64) -> Duration {
    let ceiling = 1_u64.checked_shl(failures).unwrap_or(MAX_PAUSE).min(MAX_PAUSE) * 1000;
    let pause = (Mix::new(seed).below(ceiling) + 1).max(MIN_PAUSE_MS);
    match not_after.saturating_sub(now) {
        0 => Duration::from_millis(pause), // Expired: nothing left to be in time for.
        left => Duration::from_millis(pause.min(left.saturating_mul(1000))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_is_renewed_about_noon() {
        let day = 86_400;
        for seed in 0..100 {
            let at = renew_at(1_000_000 - BACK_DATED, 1_000_000 + day, seed);
            assert!((1_000_000 + day / 2..=1_000_000 + day * 55 / 100).contains(&at));
        }
    }

    #[test]
    fn seeds_spread() {
        let times: std::collections::BTreeSet<_> = (0..50).map(|seed| renew_at(0, 86_700, seed)).collect();
        assert!(times.len() > 40);
    }

    proptest! {
        #[test]
        fn renewal_is_within_the_lifetime(not_before in any::<u64>(), life in any::<u64>(), seed in any::<u64>()) {
            let not_after = not_before.saturating_add(life);
            let at = renew_at(not_before, not_after, seed);
            prop_assert!(not_before <= at && at <= not_after);
        }

        #[test]
        fn pauses_are_bounded(failures in any::<u32>(), now in any::<u64>(), not_after in any::<u64>(), seed in any::<u64>()) {
            let pause = retry_after(failures, now, not_after, seed);
            prop_assert!(pause > Duration::ZERO && pause <= Duration::from_secs(MAX_PAUSE));
            if now < not_after {
                prop_assert!(pause.as_secs() <= not_after - now);
            }
            if failures == 0 {
                prop_assert!(pause <= Duration::from_secs(1));
            }
        }
    }
}
