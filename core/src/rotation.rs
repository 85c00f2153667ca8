//! When a certificate is renewed, and how long to wait after a failure.

use std::time::Duration;

/// Seconds since the Unix epoch.
pub type UnixTime = u64;

/// When to renew a certificate that is valid from `not_before` to `not_after`: at half life (of what is left after `issued`),
/// spread by up to 5 % of the lifetime by `seed`; never later than 90 %.
#[allow(unused_variables)]
pub fn renew_at(not_before: UnixTime, not_after: UnixTime, seed: u64) -> UnixTime {
    todo!()
}

/// How long to wait before attempt `failures + 1`: full-jitter exponential, 1 s to 150 s, never past `not_after`.
#[allow(unused_variables)]
pub fn retry_after(failures: u32, now: UnixTime, not_after: UnixTime, seed: u64) -> Duration {
    todo!()
}
