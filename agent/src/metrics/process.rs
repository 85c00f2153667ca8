//! What the process uses of the machine.

use metrics::{describe_gauge, gauge};

pub(super) fn describe() {
    describe_gauge!(OPEN, "Open file descriptors");
    describe_gauge!(MOST, "Most file descriptors that may be open");
}

/// Looks, and says what can be seen.
pub(super) fn sample() {
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is the directory that is being read.
        gauge!(OPEN).set(super::count(open.count().saturating_sub(1) as u64));
    }
    let most = std::fs::read_to_string("/proc/self/limits").ok();
    if let Some(most) = most.as_deref().and_then(most_open) {
        gauge!(MOST).set(super::count(most));
    }
}

/// The soft limit.
fn most_open(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

const OPEN: &str = "process_open_fds";
const MOST: &str = "process_max_fds";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n";
        assert_eq!(most_open(text), Some(1024));
        assert_eq!(most_open(""), None);
        let here = std::fs::read_to_string("/proc/self/limits").unwrap();
        assert!(most_open(&here).is_some_and(|most| most > 0), "{here}");
    }
}
