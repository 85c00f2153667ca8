//! Counts of the data plane, readable from other threads.

use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::engine::Counters;

/// Written by the loop once per turn, read by anyone.
#[derive(Debug, Default)]
pub struct Stats {
    flows: AtomicU64,
    half_open: AtomicU64,
    packets_in: AtomicU64,
    packets_out: AtomicU64,
    malformed: AtomicU64,
    not_ours: AtomicU64,
    dropped_flow_limit: AtomicU64,
    dropped_half_open: AtomicU64,
    dropped_no_memory: AtomicU64,
    dropped_events_full: AtomicU64,
    dropped_replies: AtomicU64,
    write_errors: AtomicU64,
}

/// The counts at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Live TCP flows.
    pub flows: u64,
    /// Of these, whose SYN is not answered yet.
    pub half_open: u64,
    /// Since the start.
    pub counters: Counters,
    /// Packets that the device refused.
    pub write_errors: u64,
}

impl Stats {
    /// The counts now (as of the loop's last turn).
    pub fn snapshot(&self) -> Snapshot {
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Snapshot {
            flows: get(&self.flows),
            half_open: get(&self.half_open),
            counters: Counters {
                packets_in: get(&self.packets_in),
                packets_out: get(&self.packets_out),
                malformed: get(&self.malformed),
                not_ours: get(&self.not_ours),
                dropped_flow_limit: get(&self.dropped_flow_limit),
                dropped_half_open: get(&self.dropped_half_open),
                dropped_no_memory: get(&self.dropped_no_memory),
                dropped_events_full: get(&self.dropped_events_full),
                dropped_replies: get(&self.dropped_replies),
            },
            write_errors: get(&self.write_errors),
        }
    }

    pub(super) fn refresh(&self, counters: &Counters, flows: usize, half_open: usize) {
        let set = |cell: &AtomicU64, value: u64| cell.store(value, Ordering::Relaxed);
        set(&self.flows, flows as u64);
        set(&self.half_open, half_open as u64);
        set(&self.packets_in, counters.packets_in);
        set(&self.packets_out, counters.packets_out);
        set(&self.malformed, counters.malformed);
        set(&self.not_ours, counters.not_ours);
        set(&self.dropped_flow_limit, counters.dropped_flow_limit);
        set(&self.dropped_half_open, counters.dropped_half_open);
        set(&self.dropped_no_memory, counters.dropped_no_memory);
        set(&self.dropped_events_full, counters.dropped_events_full);
        set(&self.dropped_replies, counters.dropped_replies);
    }

    pub(super) fn count_write_error(&self) {
        self.write_errors.fetch_add(1, Ordering::Relaxed);
    }
}
