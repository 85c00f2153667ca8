//! UDP flows that applications of this machine opened, and what waits to be sent on them.
//!
//! A flow is a 5-tuple. It begins with a datagram and ends when nothing passed for a while, or when another one needs its
//! place: the one that was idle for longest gives way. What waits is bounded, for each flow and for all; where there is no more
//! room the flow's own oldest datagrams are dropped, since late ones are worth least.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::packet::FlowKey;

/// A point in time: the duration since any fixed moment that the caller chose.
pub type Instant = Duration;

/// One flow, told from an earlier one of the same 5-tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// What is bounded, and by how much.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows at a time, at least 1.
    pub flows: usize,
    /// Datagrams that wait on one flow, at least 1.
    pub datagrams: usize,
    /// Their payload bytes; one datagram may wait in any case.
    pub bytes: usize,
    /// Payload bytes that wait on all flows together.
    pub total_bytes: usize,
    /// A flow on which nothing passed for so long is over.
    pub idle: Duration,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub flow: FlowId,
    /// Whether it is the first of a new flow.
    pub opened: bool,
    /// The flow that had to give way to a new one.
    pub evicted: Option<FlowId>,
}

/// All flows. See the module.
#[derive(Debug)]
pub struct Flows {
    limits: Limits,
    keys: BTreeMap<FlowKey, FlowId>,
    flows: BTreeMap<FlowId, Flow>,
    /// By the time when something passed last.
    activity: BTreeSet<(Instant, FlowId)>,
    next: u64,
    waiting_bytes: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Flow {
    key: FlowKey,
    active: Instant,
    waiting: Queue,
}

/// Datagrams that wait, in order. Where there is no room for a new one the oldest are dropped.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    /// Appends a datagram, so that at most `datagrams` with `bytes` of payload wait; one waits in any case. Gives how many were
    /// dropped for it.
    pub fn push(&mut self, payload: Bytes, datagrams: usize, bytes: usize) -> u64 {
        let mut dropped = 0;
        while !self.waiting.is_empty() && (self.waiting.len() >= datagrams || self.bytes + payload.len() > bytes) {
            self.pop();
            dropped += 1;
        }
        self.bytes += payload.len();
        self.waiting.push_back(payload);
        dropped
    }

    /// The oldest.
    pub fn pop(&mut self) -> Option<Bytes> {
        let payload = self.waiting.pop_front()?;
        self.bytes -= payload.len();
        Some(payload)
    }
}

impl Flows {
    /// No flow yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            keys: BTreeMap::new(),
            flows: BTreeMap::new(),
            activity: BTreeSet::new(),
            next: 0,
            waiting_bytes: 0,
            dropped: 0,
        }
    }

    /// A datagram of an application, to be sent on its flow; opens the flow when there is none.
    pub fn take(&mut self, now: Instant, key: FlowKey, payload: Bytes) -> Taken {
        let known = self.keys.get(&key).copied();
        let (flow, evicted) = match known {
            Some(flow) => (flow, None),
            None => self.open(now, key),
        };
        self.touch(now, flow);
        self.append(flow, payload);
        Taken {
            flow,
            opened: known.is_none(),
            evicted,
        }
    }

    /// The oldest datagram that waits on a flow.
    pub fn next(&mut self, flow: FlowId) -> Option<Bytes> {
        let payload = self.flows.get_mut(&flow)?.waiting.pop()?;
        self.waiting_bytes -= payload.len();
        Some(payload)
    }

    /// Something passed on the flow.
    pub fn touch(&mut self, now: Instant, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && now > flow.active
        {
            self.activity.remove(&(flow.active, id));
            flow.active = now;
            self.activity.insert((now, id));
        }
    }

    /// Whether the flow is still one.
    pub fn lives(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow)
    }

    /// Forgets a flow, and what waits on it.
    pub fn remove(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.keys.remove(&flow.key);
        self.activity.remove(&(flow.active, id));
        self.waiting_bytes -= flow.waiting.bytes;
        self.dropped += flow.waiting.waiting.len() as u64;
    }

    /// Forgets one flow that was idle for too long.
    pub fn expire(&mut self, now: Instant) -> Option<FlowId> {
        let (_, id) = self.activity.first().copied()?;
        if self.next_expiry()? > now {
            return None;
        }
        self.remove(id);
        Some(id)
    }

    /// When the next flow will have been idle for too long, unless something passes on it.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.activity.first().map(|(active, _)| *active + self.limits.idle)
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Payload bytes that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Datagrams that were dropped for lack of room, or with their flow.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn open(&mut self, now: Instant, key: FlowKey) -> (FlowId, Option<FlowId>) {
        let mut evicted = None;
        if self.flows.len() >= self.limits.flows {
            evicted = self.activity.first().map(|(_, id)| *id);
            evicted.into_iter().for_each(|id| self.remove(id));
        }
        let id = FlowId(self.next);
        self.next += 1;
        let flow = Flow {
            key,
            active: now,
            waiting: Queue::default(),
        };
        self.keys.insert(key, id);
        self.flows.insert(id, flow);
        self.activity.insert((now, id));
        (id, evicted)
    }

    fn append(&mut self, id: FlowId, payload: Bytes) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let others = self.waiting_bytes - flow.waiting.bytes;
        let room = self.limits.total_bytes.saturating_sub(others);
        if payload.len() > room {
            self.dropped += 1;
            return;
        }
        let bytes = self.limits.bytes.min(room);
        self.dropped += flow.waiting.push(payload, self.limits.datagrams, bytes);
        self.waiting_bytes = others + flow.waiting.bytes;
    }
}

#[cfg(test)]
mod tests;
