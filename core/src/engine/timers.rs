//! Deadlines of flows, in order, at most one a flow.

use std::collections::BTreeSet;

use super::api::{FlowId, Instant};

/// All deadlines. The flow keeps a copy of its own, so that it can be found and moved.
#[derive(Debug, Default)]
pub(super) struct Timers {
    ordered: BTreeSet<(Instant, FlowId)>,
}

impl Timers {
    /// Moves a flow's deadline from `current`, which is updated, to `next`.
    pub(super) fn set(&mut self, flow: FlowId, current: &mut Option<Instant>, next: Option<Instant>) {
        if *current == next {
            return;
        }
        if let Some(at) = current.take() {
            self.ordered.remove(&(at, flow));
        }
        if let Some(at) = next {
            self.ordered.insert((at, flow));
        }
        *current = next;
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.ordered.first().map(|(at, _)| *at)
    }

    /// Takes one flow whose deadline is not after `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<FlowId> {
        let entry = self.ordered.first().filter(|(at, _)| *at <= now).copied()?;
        self.ordered.remove(&entry);
        Some(entry.1)
    }

    /// How many deadlines are set.
    pub(super) fn len(&self) -> usize {
        self.ordered.len()
    }
}
