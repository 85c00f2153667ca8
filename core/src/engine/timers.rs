//! Deadlines of flows: an ordered set with at most one entry a flow.

use std::collections::BTreeSet;

use super::{FlowId, Instant};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Instant, FlowId)>,
}

impl Timers {
    /// Moves a flow's deadline from `old` to `new`.
    pub(super) fn set(&mut self, flow: FlowId, old: Option<Instant>, new: Option<Instant>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.due.remove(&(old, flow));
        }
        if let Some(new) = new {
            self.due.insert((new, flow));
        }
    }

    /// Takes a flow whose deadline has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<FlowId> {
        let first = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.due.remove(&first);
        Some(first.1)
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}
