//! One line a flow, with both identities and the reason of its end (istio-wire section 5.2), and its metrics.

use std::time::Duration;

use crate::failure::Failure;
use crate::flows::Facts;

/// Writes the access-log line of a flow that is over, and counts it (`istio_tcp_*`).
#[allow(unused_variables)]
pub fn closed(id: u64, facts: &Facts, forth: u64, back: u64, duration: Duration, failure: Option<&Failure>) {
    todo!()
}

/// Counts a flow that was opened, and writes its line at DEBUG.
#[allow(unused_variables)]
pub fn opened(id: u64, facts: &Facts) {
    todo!()
}

/// Says what a dry-run policy would have done.
#[allow(unused_variables)]
pub fn dry_run(policy: &str, action: mesh_core::policy::Action, facts: &Facts) {
    todo!()
}
