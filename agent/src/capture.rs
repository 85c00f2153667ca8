//! The border between the pure engine and the IO around it: one TUN queue, one engine, one thread.
//!
//! [`Capture::run`] is the loop: packets in, events out, packets out, timers. [`Flow`], [`FlowSource`] and [`FlowSink`]
//! call the engine directly, on the same thread, and then wake the loop, which writes what came of it in one batch.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mesh_core::engine::{Engine, Limits, Refusal};
use mesh_core::packet::FlowKey;

use crate::config;
use crate::copy::End;
use crate::failure::Failure;
use crate::tun::Tun;
use crate::tun::rings::MappedRings;

mod driver;
mod opener;
mod shared;
mod stats;
mod streams;
#[cfg(test)]
mod tests;

pub use opener::Opener;
use shared::{Handle, Shared};
pub use stats::{Snapshot, Stats};
pub use streams::{FlowSink, FlowSource};

/// A flow that is half-closed and silent is dropped after this long.
const LINGER: std::time::Duration = std::time::Duration::from_secs(3600);
/// Events that may wait between two turns of the loop.
const EVENTS: usize = 4096;

/// What was captured.
#[derive(Debug)]
pub enum Captured {
    /// A TCP connection whose SYN is not answered yet.
    Tcp(Flow),
    /// One UDP datagram; answer by [`Replies::datagram`].
    Datagram { key: FlowKey, payload: Bytes },
}

/// One TUN queue with its engine. Lives on one thread.
#[derive(Debug)]
pub struct Capture {
    shared: Rc<Shared>,
}

impl Capture {
    /// Registers the device with the runtime of this thread; `seed` makes initial sequence numbers.
    pub fn new(tun: Tun, config: &config::Capture, seed: [u8; 32]) -> io::Result<(Self, Replies)> {
        let limits = Limits {
            flows: config.max_flows,
            half_open: config.max_half_open,
            // One dead destination may not use up what all share.
            half_open_per_destination: (config.max_half_open / 4).max(1),
            opened: config.max_flows.div_ceil(2),
            ring_bytes: config.ring_bytes,
            events: EVENTS,
            linger: LINGER,
        };
        let rings = MappedRings::new(config.ring_bytes, config.max_flows.saturating_mul(2));
        let engine = Engine::new(limits, tun.offload(), seed, Box::new(rings));
        let shared = Rc::new(Shared::new(tun, engine)?);
        let replies = Replies { shared: shared.clone() };
        Ok((Self { shared }, replies))
    }

    /// Counts and live flows, for other threads; refreshed once per turn of the loop.
    pub fn stats(&self) -> Arc<Stats> {
        self.shared.stats.clone()
    }

    /// Opens flows of this engine.
    pub fn opener(&self) -> Opener {
        Opener {
            shared: self.shared.clone(),
        }
    }

    /// Carries packets until the device is lost; resolves with the reason. `on` is called for each captured flow and
    /// datagram; it must not block.
    pub async fn run(self, on: impl FnMut(Captured)) -> io::Error {
        driver::run(&self.shared, on).await
    }
}

/// One captured TCP connection. Dropping it aborts it.
#[derive(Debug)]
pub struct Flow {
    handle: Handle,
    answered: bool,
}

impl Flow {
    fn new(handle: Handle) -> Self {
        Self {
            handle,
            answered: false,
        }
    }

    /// Source is the application, destination what it connected to.
    pub fn key(&self) -> FlowKey {
        self.handle.key()
    }

    /// Lets the SYN-ACK go, and gives the two directions.
    pub fn accept(mut self) -> Result<End<FlowSource, FlowSink>, Failure> {
        self.answered = true;
        self.handle.accept()?;
        Ok(End {
            source: FlowSource::new(self.handle.clone()),
            sink: FlowSink::new(self.handle.clone()),
        })
    }

    /// The application sees this instead of a connection.
    pub fn refuse(mut self, why: Refusal) {
        self.answered = true;
        self.handle.refuse(why);
    }

    /// Resolves when the application gave up before the SYN was answered.
    pub async fn abandoned(&self) {
        self.handle.closed().await;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.answered {
            self.handle.refuse(Refusal::Refused);
        }
    }
}

/// Sends datagrams back into the TUN.
#[derive(Clone, Debug)]
pub struct Replies {
    shared: Rc<Shared>,
}

impl Replies {
    /// Answers a captured datagram: from its destination to its source.
    pub fn datagram(&self, original: FlowKey, payload: &[u8]) {
        self.shared
            .engine
            .borrow_mut()
            .send_datagram(original.destination, original.source, payload);
        self.shared.wake_loop();
    }

    /// Tells the application why its datagram did not arrive. `payload` is the datagram's.
    pub fn unreachable(&self, original: FlowKey, payload: &[u8], why: Refusal) {
        self.shared
            .engine
            .borrow_mut()
            .datagram_unreachable(original, payload, why);
        self.shared.wake_loop();
    }
}
