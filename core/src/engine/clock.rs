//! TCP timestamps. smoltcp asks a plain function for them, so the engine leaves its `now` here before each call; it is a
//! copy of an argument, never a clock that is read.

use std::cell::Cell;

use super::Instant;

thread_local! {
    static NOW_MS: Cell<u32> = const { Cell::new(0) };
}

/// Leaves the time for [`tsval`].
pub(super) fn set(now: Instant) {
    // Wraps around after 49 days, as RFC 7323 expects.
    #[allow(clippy::cast_possible_truncation)]
    NOW_MS.set(now.as_millis() as u32);
}

/// Milliseconds, as TCP timestamps count (RFC 7323). Never 0, which smoltcp takes for "no timestamp".
pub(super) fn tsval() -> u32 {
    NOW_MS.get() | 1
}
