//! What the loop and the flows of one thread share: the engine, the device, and who waits for what.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use mesh_core::engine::{CloseReason, Engine, FlowError, FlowId, Instant, PacketOut, Refusal};
use mesh_core::packet::FlowKey;
use rustc_hash::FxHashMap;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::stats::Stats;
use crate::failure::Failure;
use crate::tun::{MAX_PACKET, Tun};

/// One per [`super::Capture`].
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) tun: AsyncFd<Tun>,
    pub(super) engine: RefCell<Engine>,
    pub(super) waiters: RefCell<FxHashMap<FlowId, Rc<Waiters>>>,
    pub(super) outgoing: RefCell<Outgoing>,
    pub(super) stats: Arc<Stats>,
    work: Notify,
    start: tokio::time::Instant,
}

/// The packet that is being written.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) buffer: Vec<u8>,
    /// The device did not take it yet. A dropped packet would cost the flow a second.
    pub(super) waiting: Option<PacketOut>,
}

/// Who waits for one flow, and how it ended.
#[derive(Default)]
pub(super) struct Waiters {
    pub(super) readable: Cell<Option<Waker>>,
    pub(super) writable: Cell<Option<Waker>>,
    pub(super) closed: Cell<Option<Waker>>,
    /// The application answered what we opened.
    answered: Cell<bool>,
    pub(super) reason: Cell<Option<CloseReason>>,
}

impl Shared {
    pub(super) fn new(tun: Tun, engine: Engine) -> io::Result<Self> {
        Ok(Self {
            tun: tun.register()?,
            engine: RefCell::new(engine),
            waiters: RefCell::default(),
            outgoing: RefCell::new(Outgoing {
                buffer: vec![0; MAX_PACKET],
                waiting: None,
            }),
            stats: Arc::default(),
            work: Notify::new(),
            start: tokio::time::Instant::now(),
        })
    }

    /// Time as the engine counts it.
    pub(super) fn now(&self) -> Instant {
        self.start.elapsed()
    }

    /// The runtime's instant for a time of the engine.
    pub(super) fn at(&self, time: Instant) -> tokio::time::Instant {
        self.start + time
    }

    /// The engine may have packets or events.
    pub(super) fn wake_loop(&self) {
        self.work.notify_one();
    }

    /// Until [`Self::wake_loop`] was called.
    pub(super) async fn woken(&self) {
        self.work.notified().await;
    }
}

impl Waiters {
    pub(super) fn wake(cell: &Cell<Option<Waker>>) {
        if let Some(waker) = cell.take() {
            waker.wake();
        }
    }

    /// The application answered.
    pub(super) fn answer(&self) {
        self.answered.set(true);
        Self::wake(&self.closed);
    }

    /// The flow is over.
    pub(super) fn close(&self, reason: CloseReason) {
        self.reason.set(Some(reason));
        for cell in [&self.readable, &self.writable, &self.closed] {
            Self::wake(cell);
        }
    }
}

impl std::fmt::Debug for Waiters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiters")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// One flow in the engine, from outside of it.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    shared: Rc<Shared>,
    flow: FlowId,
    key: FlowKey,
    pub(super) waiters: Rc<Waiters>,
}

impl Handle {
    /// Registers a flow that the engine has just reported.
    pub(super) fn new(shared: &Rc<Shared>, flow: FlowId, key: FlowKey) -> Self {
        let waiters = Rc::<Waiters>::default();
        shared.waiters.borrow_mut().insert(flow, waiters.clone());
        Self {
            shared: shared.clone(),
            flow,
            key,
            waiters,
        }
    }

    pub(super) fn key(&self) -> FlowKey {
        self.key
    }

    pub(super) fn accept(&self) -> Result<(), Failure> {
        if let Some(reason) = self.waiters.reason.get() {
            return Err(ended(Some(reason)));
        }
        let accepted = self.with_engine(|engine, now, flow| engine.accept(now, flow));
        // The flow was there, so what lacked is memory; or the application's end has not been reported yet.
        accepted.map_err(|_| Failure::Limit("no memory for one more flow, or the application has gone"))
    }

    pub(super) fn refuse(&self, why: Refusal) {
        self.with_engine(|engine, now, flow| engine.refuse(now, flow, why));
    }

    pub(super) fn abort(&self) {
        self.with_engine(|engine, now, flow| engine.abort(now, flow));
    }

    /// Calls the engine for this flow, and wakes the loop.
    pub(super) fn with_engine<T>(&self, call: impl FnOnce(&mut Engine, Instant, FlowId) -> T) -> T {
        let result = call(&mut self.shared.engine.borrow_mut(), self.shared.now(), self.flow);
        self.shared.wake_loop();
        result
    }

    /// Calls the engine for this flow, without waking the loop.
    pub(super) fn peek_engine<T>(&self, call: impl FnOnce(&mut Engine, Instant, FlowId) -> T) -> T {
        call(&mut self.shared.engine.borrow_mut(), self.shared.now(), self.flow)
    }

    pub(super) fn wake_loop(&self) {
        self.shared.wake_loop();
    }

    /// Until the flow is over.
    pub(super) async fn closed(&self) {
        std::future::poll_fn(|context| self.poll_closed(context)).await;
    }

    /// Until a flow that we opened is answered, or, with the reason, is over without.
    pub(super) async fn answered(&self) -> Result<(), CloseReason> {
        std::future::poll_fn(|context| {
            if self.waiters.answered.get() {
                return Poll::Ready(Ok(()));
            }
            self.poll_closed(context)
                .map(|()| Err(self.waiters.reason.get().unwrap_or(CloseReason::Aborted)))
        })
        .await
    }

    /// What an error of the engine means for the one who reads or writes.
    pub(super) fn explain(&self, error: FlowError) -> Failure {
        match error {
            FlowError::Gone => ended(self.waiters.reason.get()),
            FlowError::Finished => Failure::Io(Arc::new(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "written after the end was sent",
            ))),
        }
    }

    fn poll_closed(&self, context: &Context<'_>) -> Poll<()> {
        if self.waiters.reason.get().is_some() {
            return Poll::Ready(());
        }
        self.waiters.closed.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

fn ended(reason: Option<CloseReason>) -> Failure {
    match reason {
        Some(CloseReason::TimedOut) => Failure::Timeout("the application did not answer".into()),
        Some(CloseReason::Aborted) => Failure::Stopping,
        Some(CloseReason::Unreachable) => Failure::Unreachable("an ICMP error answered".into()),
        // None: the end is about to be reported. Only the application ends a flow without our doing.
        Some(CloseReason::ResetByApplication | CloseReason::Finished) | None => Failure::ApplicationReset,
    }
}
