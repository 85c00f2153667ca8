//! One captured TCP connection, and its two directions.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mesh_core::engine::{CloseReason, FlowError, FlowId, Read, Refusal};
use mesh_core::packet::FlowKey;

use super::Inner;
use crate::copy::{End, Sink, Source};
use crate::failure::Failure;

/// Who waits for a flow, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
    closed: Cell<Option<CloseReason>>,
}

impl Waiting {
    pub(super) fn wake_reader(&self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    pub(super) fn close(&self, reason: CloseReason) {
        self.closed.set(Some(reason));
        self.wake_reader();
        self.wake_writer();
    }

    /// What is to be said of a flow that is gone.
    fn failure(&self) -> Failure {
        match self.closed.get() {
            Some(CloseReason::TimedOut) => Failure::Timeout("the application was silent for too long".into()),
            Some(CloseReason::Aborted) => Failure::Stopping,
            Some(CloseReason::ResetByApplication | CloseReason::Finished) | None => Failure::ApplicationReset,
        }
    }
}

/// What the halves of a flow share.
#[derive(Clone, Debug)]
struct Handle {
    inner: Rc<Inner>,
    id: FlowId,
    state: Rc<Waiting>,
}

impl Handle {
    fn abort(&self) {
        self.inner.engine.borrow_mut().abort(self.inner.now(), self.id);
        self.inner.touched.notify_one();
    }
}

/// A captured connection whose SYN is not answered yet. Dropping it resets it.
#[derive(Debug)]
pub struct Flow {
    handle: Handle,
    key: FlowKey,
    answered: bool,
}

impl Flow {
    pub(super) fn new(inner: Rc<Inner>, id: FlowId, key: FlowKey, state: Rc<Waiting>) -> Self {
        Self { handle: Handle { inner, id, state }, key, answered: false }
    }

    /// Source is the application, destination what it connected to.
    pub fn key(&self) -> FlowKey {
        self.key
    }

    /// Lets the SYN-ACK go, and gives the two directions.
    pub fn accept(mut self) -> Result<End<FlowSource, FlowSink>, Failure> {
        self.answered = true;
        let handle = self.handle.clone();
        let accepted = handle.inner.engine.borrow_mut().accept(handle.inner.now(), handle.id);
        accepted.map_err(|_| handle.state.failure())?;
        handle.inner.touched.notify_one();
        Ok(End {
            source: FlowSource { handle: handle.clone(), ended: false },
            sink: FlowSink { handle, finished: false },
        })
    }

    /// The application sees this instead of a connection.
    pub fn refuse(mut self, why: Refusal) {
        self.answered = true;
        self.handle.inner.engine.borrow_mut().refuse(self.handle.inner.now(), self.handle.id, why);
        self.handle.inner.touched.notify_one();
    }

    /// Resolves when the application gave up before the SYN was answered.
    pub async fn abandoned(&self) {
        poll_fn(|context| {
            if self.handle.state.closed.get().is_some() {
                return Poll::Ready(());
            }
            self.handle.state.reader.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.answered {
            self.handle.abort();
        }
    }
}

/// What the application sends.
#[derive(Debug)]
pub struct FlowSource {
    handle: Handle,
    ended: bool,
}

impl FlowSource {
    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failure>> {
        let handle = &self.handle;
        let mut bytes = Bytes::new();
        let read = handle.inner.engine.borrow_mut().read_with(handle.inner.now(), handle.id, MAX_CHUNK, &mut |ring| {
            bytes = Bytes::copy_from_slice(ring);
        });
        match read {
            Ok(Read::Bytes(_)) => {
                // The window opened: an acknowledgement may have to go out.
                handle.inner.touched.notify_one();
                Poll::Ready(Ok(Some(bytes)))
            }
            Ok(Read::End) => {
                self.ended = true;
                Poll::Ready(Ok(None))
            }
            Ok(Read::Blocked) => {
                handle.state.reader.replace(Some(context.waker().clone()));
                Poll::Pending
            }
            Err(FlowError::Gone | FlowError::Finished) => {
                self.ended = true;
                match handle.state.closed.get() {
                    Some(CloseReason::Finished) => Poll::Ready(Ok(None)),
                    _ => Poll::Ready(Err(handle.state.failure())),
                }
            }
        }
    }
}

impl Source for FlowSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    fn stop(&mut self) {
        if !self.ended {
            self.ended = true;
            self.handle.abort();
        }
    }
}

impl Drop for FlowSource {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the application receives. Dropping it unfinished resets the flow.
#[derive(Debug)]
pub struct FlowSink {
    handle: Handle,
    finished: bool,
}

impl FlowSink {
    fn poll_send(&mut self, bytes: &mut Bytes, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let handle = &self.handle;
        let written = handle.inner.engine.borrow_mut().write(handle.inner.now(), handle.id, bytes);
        let Ok(written) = written else {
            self.finished = true;
            return Poll::Ready(Err(handle.state.failure()));
        };
        if written > 0 {
            handle.inner.touched.notify_one();
        }
        bytes::Buf::advance(bytes, written);
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        handle.state.writer.replace(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Sink for FlowSink {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        poll_fn(|context| self.poll_send(&mut bytes, context)).await
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.finished = true;
        let handle = &self.handle;
        let finished = handle.inner.engine.borrow_mut().finish(handle.inner.now(), handle.id);
        handle.inner.touched.notify_one();
        finished.or_else(|_| match handle.state.closed.get() {
            Some(CloseReason::Finished) => Ok(()),
            _ => Err(handle.state.failure()),
        })
    }

    fn reset(&mut self) {
        self.finished = true;
        self.handle.abort();
    }
}

impl Drop for FlowSink {
    fn drop(&mut self) {
        if !self.finished {
            self.reset();
        }
    }
}

/// Bytes taken from a ring at a time.
const MAX_CHUNK: usize = 128 << 10;
