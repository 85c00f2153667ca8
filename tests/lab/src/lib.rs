//! Machines for tests. A [`Host`] is a network and a mount namespace without a name, so that nothing is left when a test
//! panics or is killed: a namespace lives as long as a descriptor of it or a process in it, and processes get PDEATHSIG.
//!
//! Needs root, or `unshare -Urnm`. A [`Lan`] joins hosts by a bridge; [`Sniffer`] records what a wire carries;
//! [`wait_for`] waits for a condition, and is the only place where tests sleep.

use std::time::{Duration, Instant};

mod host;
mod lan;
mod namespace;
mod sniffer;

pub use host::{Host, Proc};
pub use lan::{Lan, cable};
pub use sniffer::Sniffer;

/// Polls `condition` until it gives something, at most for `deadline`.
///
/// # Panics
/// When the deadline passes; `what` says what was waited for.
pub fn wait_for<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: not within {deadline:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// [`wait_for`] with a plain condition.
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(deadline, what, || condition().then_some(()));
}

/// The program of somebody else's that this variable names; without it the test says SKIPPED aloud, and passes.
pub fn given(variable: &str) -> Option<std::path::PathBuf> {
    let Some(path) = std::env::var_os(variable).map(std::path::PathBuf::from) else {
        // Straight to the terminal: the test harness keeps what a passing test prints to itself.
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("test");
        let message = format!("SKIPPED {test}: {variable} names no binary\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
        return None;
    };
    assert!(path.exists(), "{variable}={}: there is no such file", path.display());
    Some(path)
}
