//! The border between the pure engine and the IO around it: one TUN queue, one engine, one thread.
//!
//! [`Capture::run`] is the loop; [`Flow`] and its two halves read from and write to the engine's rings directly, so that
//! there is no queue, and no copy, between them and the application's TCP window.

mod flow;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mesh_core::engine::{Counters, Engine, Event, FlowId, Limits, PacketOut};
use mesh_core::packet::FlowKey;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config;
use crate::tun::rings::RingSlab;
use crate::tun::{BUFFER, HEAD, Tun};
pub use flow::{Flow, FlowSink, FlowSource};
use flow::Waiting;

/// What was captured.
#[derive(Debug)]
pub enum Captured {
    /// A TCP connection whose SYN is not answered yet.
    Tcp(Flow),
    /// One UDP datagram; answer by [`Replies::datagram`].
    Datagram { key: FlowKey, payload: Bytes },
}

/// Counters that other threads may read.
pub type Stats = Arc<Mutex<(Counters, usize)>>;

/// One shard's capture.
#[derive(Debug)]
pub struct Capture {
    inner: Rc<Inner>,
    stats: Stats,
}

#[derive(Debug)]
struct Inner {
    engine: RefCell<Engine>,
    tun: Tun,
    waiting: RefCell<FxHashMap<FlowId, Rc<Waiting>>>,
    /// Something was done to the engine outside of the loop.
    touched: Notify,
    start: Instant,
}

impl Inner {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Sends datagrams back into the TUN.
#[derive(Clone, Debug)]
pub struct Replies(Rc<Inner>);

impl Replies {
    /// Answers a captured datagram: from its destination to its source.
    pub fn datagram(&self, original: FlowKey, payload: &[u8]) {
        self.0.engine.borrow_mut().send_datagram(original.destination, original.source, payload);
        self.0.touched.notify_one();
    }
}

impl Capture {
    /// Takes over an open device. `seed` makes initial sequence numbers.
    pub fn new(tun: Tun, config: &config::Capture, seed: [u8; 32], stats: Stats) -> (Self, Replies) {
        let limits = Limits {
            flows: config.max_flows,
            half_open: config.max_half_open,
            half_open_per_destination: config.max_half_open,
            ring_bytes: config.ring_bytes,
            events: MAX_DATAGRAMS,
            linger: LINGER,
            mtu: usize::from(config.mtu),
        };
        let rings = Box::new(RingSlab::new(config.ring_bytes, config.max_flows * 2));
        let inner = Rc::new(Inner {
            engine: RefCell::new(Engine::new(limits, tun.offload(), seed, rings)),
            tun,
            waiting: RefCell::default(),
            touched: Notify::new(),
            start: Instant::now(),
        });
        (Self { inner: inner.clone(), stats }, Replies(inner))
    }

    /// Serves the device until it fails. `on` is called for each new connection and datagram, and must not block.
    pub async fn run(self, mut on: impl FnMut(Captured)) -> io::Result<()> {
        let inner = &self.inner;
        let mut buffers = Buffers { read: vec![0; BUFFER], write: vec![0; BUFFER], unsent: None };
        loop {
            let more = self.receive(&mut buffers.read)?;
            self.drain(&mut buffers, &mut on)?;
            self.publish();
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = inner.engine.borrow().poll_timeout().map(|at| inner.start + at);
            tokio::select! {
                ready = inner.tun.ready(buffers.unsent.is_some()) => ready?,
                () = inner.touched.notified() => {}
                () = sleep_until(deadline) => inner.engine.borrow_mut().handle_timeout(inner.now()),
            }
        }
    }

    /// Reads a batch into the engine; true when there may be more.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<bool> {
        for _ in 0..BATCH {
            match self.inner.tun.recv(buffer)? {
                Some(packet) => self.inner.engine.borrow_mut().handle_packet(self.inner.now(), packet),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Hands out events and writes packets, until the engine is quiet or the device is full.
    fn drain(&self, buffers: &mut Buffers, on: &mut impl FnMut(Captured)) -> io::Result<()> {
        let inner = &self.inner;
        loop {
            while let Some(event) = { inner.engine.borrow_mut().poll_event() } {
                self.event(event, on);
            }
            if let Some(out) = buffers.unsent.take() {
                if !self.send(&mut buffers.write, &out)? {
                    buffers.unsent = Some(out);
                    return Ok(());
                }
            }
            let now = inner.now();
            let mut sent = 0;
            while let Some(out) = { inner.engine.borrow_mut().poll_packet(now, &mut buffers.write[HEAD..]) } {
                if !self.send(&mut buffers.write, &out)? {
                    buffers.unsent = Some(out);
                    return Ok(());
                }
                sent += 1;
            }
            if sent == 0 {
                return Ok(());
            }
        }
    }

    fn send(&self, buffer: &mut [u8], out: &PacketOut) -> io::Result<bool> {
        match self.inner.tun.send(buffer, out) {
            // The kernel refused this one packet (no memory, no route back): TCP repeats it.
            Err(error) if error.raw_os_error() != Some(libc::EBADFD) => {
                tracing::debug!(target: "mesh_agent::capture", %error, bytes = out.len, "packet not written");
                Ok(true)
            }
            other => other,
        }
    }

    fn event(&self, event: Event, on: &mut impl FnMut(Captured)) {
        let waiting = &self.inner.waiting;
        match event {
            Event::Opened { flow, key } => {
                let state = Rc::new(Waiting::default());
                waiting.borrow_mut().insert(flow, state.clone());
                on(Captured::Tcp(Flow::new(self.inner.clone(), flow, key, state)));
            }
            Event::Readable { flow } => {
                if let Some(state) = waiting.borrow().get(&flow) {
                    state.wake_reader();
                }
            }
            Event::Writable { flow } => {
                if let Some(state) = waiting.borrow().get(&flow) {
                    state.wake_writer();
                }
            }
            Event::Closed { flow, reason } => {
                if let Some(state) = waiting.borrow_mut().remove(&flow) {
                    state.close(reason);
                }
            }
            Event::Datagram { key, payload } => on(Captured::Datagram { key, payload }),
        }
    }

    fn publish(&self) {
        let engine = self.inner.engine.borrow();
        *self.stats.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (engine.counters(), engine.flows());
    }
}

#[derive(Debug)]
struct Buffers {
    read: Vec<u8>,
    write: Vec<u8>,
    /// A packet that stands in `write` and that the device had no room for.
    unsent: Option<PacketOut>,
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Packets read before others have their turn.
const BATCH: usize = 32;
/// Captured datagrams that wait to be handed out.
const MAX_DATAGRAMS: usize = 4096;
/// How long a flow that only the application keeps open may be silent after we finished.
const LINGER: Duration = Duration::from_secs(3600);
