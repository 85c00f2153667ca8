//! The flow table: a slab of flows with an index by key. The index is only looked up, never walked.

use std::net::SocketAddr;

use rustc_hash::FxHashMap;
use slab::Slab;

use super::api::{FlowId, Instant};
use super::tcp::TcpFlow;
use crate::packet::FlowKey;

/// One TCP flow, with what the engine itself knows of it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) state: State,
    /// The copy of its entry in the timers.
    pub(super) deadline: Option<Instant>,
    /// When something last happened: a packet came, or bytes were read or written.
    pub(super) active: Instant,
    /// Whether it waits in the dirty queue.
    pub(super) queued: bool,
    /// Whether a `Readable` event was made since the last blocked read.
    pub(super) readable_told: bool,
    /// Whether a write came up short since the last `Writable` event.
    pub(super) wants_room: bool,
    pub(super) sending: Sending,
    /// Whether both sides are finished and acknowledged; only reading is left.
    pub(super) over: bool,
    /// Whether the reader saw the end.
    pub(super) end_read: bool,
    /// Of a flow that we opened.
    pub(super) opened: Option<Opened>,
    id: FlowId,
}

/// Before and after the SYN is answered.
#[derive(Debug)]
pub(super) enum State {
    Held(Held),
    Open(Box<TcpFlow>),
}

/// What is known of a flow that we opened, beyond what is known of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    /// Whether `Connected` was told.
    pub(super) answered: bool,
    /// When the last segment passed, in either direction.
    pub(super) heard: Instant,
}

/// A SYN that waits for its answer. It costs no ring, no socket and no smoltcp timer.
#[derive(Debug)]
pub(super) struct Held {
    /// The latest copy of the SYN: IP and TCP header.
    pub(super) syn: Vec<u8>,
    pub(super) sequence: u32,
}

/// Our side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// `finish` came when smoltcp must not close yet.
    FinishLater,
    Finished,
}

/// All flows.
#[derive(Debug, Default)]
pub(super) struct FlowTable {
    flows: Slab<Flow>,
    index: FxHashMap<FlowKey, FlowId>,
    made: u32,
}

impl FlowTable {
    /// Adds a flow; the index points to it from now on.
    pub(super) fn insert(&mut self, now: Instant, key: FlowKey, state: State) -> FlowId {
        self.made = self.made.wrapping_add(1);
        let entry = self.flows.vacant_entry();
        // A slab of 2^32 flows does not fit in memory.
        let slot = u32::try_from(entry.key()).unwrap_or(u32::MAX);
        let id = FlowId(u64::from(self.made) << 32 | u64::from(slot));
        entry.insert(Flow {
            key,
            state,
            deadline: None,
            active: now,
            queued: false,
            readable_told: false,
            wants_room: false,
            sending: Sending::Open,
            over: false,
            end_read: false,
            opened: None,
            id,
        });
        self.index.insert(key, id);
        id
    }

    /// The flow of a packet.
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.index.get(key).copied()
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(slot(id)).filter(|flow| flow.id == id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(slot(id)).filter(|flow| flow.id == id)
    }

    /// Packets of its key are not this flow's any more.
    pub(super) fn detach(&mut self, id: FlowId) {
        if let Some(flow) = self.get(id)
            && self.index.get(&flow.key) == Some(&id)
        {
            let key = flow.key;
            self.index.remove(&key);
        }
    }

    pub(super) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        self.detach(id);
        self.get(id)?;
        Some(self.flows.remove(slot(id)))
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// All flows, in slab order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.flows.iter().map(|(_, flow)| (flow.id, flow))
    }
}

fn slot(id: FlowId) -> usize {
    usize::try_from(id.0 & u64::from(u32::MAX)).unwrap_or(usize::MAX)
}

/// How many SYNs are held, in all and by destination.
#[derive(Debug, Default)]
pub(super) struct HeldCounts {
    total: usize,
    destinations: FxHashMap<SocketAddr, usize>,
}

impl HeldCounts {
    pub(super) fn total(&self) -> usize {
        self.total
    }

    pub(super) fn of(&self, destination: &SocketAddr) -> usize {
        self.destinations.get(destination).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, destination: SocketAddr) {
        self.total += 1;
        *self.destinations.entry(destination).or_default() += 1;
    }

    /// Takes one away again; destinations with none are forgotten.
    pub(super) fn remove(&mut self, destination: &SocketAddr) {
        self.total = self.total.saturating_sub(1);
        if let Some(count) = self.destinations.get_mut(destination) {
            *count -= 1;
            if *count == 0 {
                self.destinations.remove(destination);
            }
        }
    }
}
