//! UDP flows that our applications open: each captured datagram finds its flow, and each flow has a task that carries it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mesh_core::engine::Refusal;
use mesh_core::packet::FlowKey;
use mesh_core::udp::{FlowId, Flows, Limits};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::capture::Replies;
use crate::config;
use crate::copy::{Sink, Source};
use crate::failure::Failure;
use crate::metrics;

/// The UDP flows of one shard. Cheap to clone; lives on the shard's thread.
#[derive(Clone, Debug)]
pub struct Udp(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    flows: RefCell<Flows>,
    /// Told when something waits on a flow, or it is over.
    changed: RefCell<FxHashMap<FlowId, Rc<Notify>>>,
    replies: Replies,
    started: Instant,
    /// A flow was opened, so that one may expire.
    opened: Notify,
}

impl Udp {
    /// No flow yet. Must be called within a `LocalSet`.
    pub fn new(config: &config::Udp, replies: Replies) -> Self {
        let limits = Limits {
            flows: config.max_flows.max(1),
            datagrams: WAITING_DATAGRAMS,
            bytes: WAITING_BYTES,
            total_bytes: ALL_WAITING_BYTES,
            idle: Duration::from_millis(config.idle_timeout_ms),
        };
        let udp = Self(Rc::new(Inner {
            flows: RefCell::new(Flows::new(limits)),
            changed: RefCell::default(),
            replies,
            started: Instant::now(),
            opened: Notify::new(),
        }));
        tokio::task::spawn_local(udp.clone().expire());
        udp
    }

    /// One captured datagram. Gives the flow when it is the first of one.
    pub fn captured(&self, key: FlowKey, payload: Bytes) -> Option<Flow> {
        let now = self.0.started.elapsed();
        let taken = {
            let mut flows = self.0.flows.borrow_mut();
            let before = flows.dropped();
            let taken = flows.take(now, key, payload);
            metrics::udp_dropped(flows.dropped() - before);
            taken
        };
        if let Some(evicted) = taken.evicted {
            self.tell(evicted);
        }
        if !taken.opened {
            self.tell(taken.flow);
            return None;
        }
        let changed = Rc::<Notify>::default();
        self.0.changed.borrow_mut().insert(taken.flow, changed.clone());
        self.0.opened.notify_one();
        Some(Flow(Rc::new(Carried {
            udp: self.clone(),
            id: taken.flow,
            key,
            changed,
            last: RefCell::default(),
        })))
    }

    fn tell(&self, flow: FlowId) {
        if let Some(changed) = self.0.changed.borrow().get(&flow) {
            changed.notify_one();
        }
    }

    async fn expire(self) {
        loop {
            let next = self.0.flows.borrow().next_expiry();
            tokio::select! {
                () = tokio::time::sleep_until(self.0.started + next.unwrap_or_default()), if next.is_some() => {}
                () = self.0.opened.notified() => {}
            }
            let now = self.0.started.elapsed();
            loop {
                let expired = self.0.flows.borrow_mut().expire(now);
                let Some(expired) = expired else { break };
                self.tell(expired);
            }
        }
    }
}

/// One flow. Each piece that it gives, or takes, is one datagram. It is over when it gives no more; dropping it ends it.
#[derive(Clone, Debug)]
pub struct Flow(Rc<Carried>);

#[derive(Debug)]
struct Carried {
    udp: Udp,
    id: FlowId,
    key: FlowKey,
    changed: Rc<Notify>,
    /// What was given last, to be quoted when it did not arrive.
    last: RefCell<Bytes>,
}

impl Flow {
    /// Source is the application, destination where its datagrams go.
    pub fn key(&self) -> FlowKey {
        self.0.key
    }

    /// Resolves when the flow is over: idle for too long, or another took its place.
    pub async fn ended(&self) {
        while self.0.udp.0.flows.borrow().lives(self.0.id) {
            self.0.changed.notified().await;
        }
    }

    /// The application sees this instead of an answer to what it sent last; and to all that it sends for a moment, so that who
    /// goes on sending costs nobody an attempt each time.
    pub async fn refuse(mut self, why: Refusal) {
        self.tell(why);
        let refused = async {
            while let Ok(Some(_)) = self.recv().await {
                self.tell(why);
            }
        };
        let _ = tokio::time::timeout(REFUSED, refused).await;
    }

    fn tell(&self, why: Refusal) {
        self.0.udp.0.replies.unreachable(self.0.key, &self.0.last.borrow(), why);
    }
}

impl Source for Flow {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let next = self.0.udp.0.flows.borrow_mut().next(self.0.id);
            if let Some(payload) = next {
                *self.0.last.borrow_mut() = payload.clone();
                return Ok(Some(payload));
            }
            if !self.0.udp.0.flows.borrow().lives(self.0.id) {
                return Ok(None);
            }
            self.0.changed.notified().await;
        }
    }

    fn stop(&mut self) {}
}

impl Sink for Flow {
    async fn send(&mut self, payload: Bytes) -> Result<(), Failure> {
        let inner = &self.0.udp.0;
        inner.flows.borrow_mut().touch(inner.started.elapsed(), self.0.id);
        inner.replies.datagram(self.0.key, &payload);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn reset(&mut self) {}
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.udp.0.flows.borrow_mut().remove(self.id);
        self.udp.0.changed.borrow_mut().remove(&self.id);
    }
}

/// For so long after a refusal the next datagrams of the flow are refused at once.
const REFUSED: Duration = Duration::from_secs(1);
/// Datagrams of one flow that wait, and their bytes; the bytes of all flows.
const WAITING_DATAGRAMS: usize = 1024;
const WAITING_BYTES: usize = 1 << 20;
const ALL_WAITING_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests;
