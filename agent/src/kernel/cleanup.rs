//! Finds and removes everything of ours without any state: after a crash, on `leave`, and on a clean stop.

use super::guard::Nft;
use super::netlink::Netlink;
use super::{KernelError, routes, rules};
use crate::config::{Capture, Config};

/// Removes what a killed agent with these settings left. It is no error if there is nothing.
pub fn cleanup(config: &Config) -> Result<(), KernelError> {
    remove(&mut Netlink::open()?, &config.capture)
}

/// Rules go first: without them the rest does nothing. Everything is tried; the first error is told.
pub(super) fn remove(netlink: &mut Netlink, capture: &Capture) -> Result<(), KernelError> {
    let rules = rules::remove(netlink, capture);
    let routes = routes::flush(netlink, capture.table);
    let callers = routes::flush(netlink, capture.caller_table());
    let guard = Nft::default().unload();
    rules.and(routes).and(callers).and(guard)
}
