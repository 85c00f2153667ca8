//! The two directions of an accepted flow, as a source and a sink. Both call the engine directly: one copy between the
//! flow's ring and a `Bytes`, no queue, so that a slow reader closes the application's window.

use std::task::Poll;

use bytes::Bytes;
use mesh_core::engine::Read;

use super::shared::Handle;
use crate::copy::{Sink, Source};
use crate::failure::Failure;

/// Most bytes of one read: large enough to amortise, small enough to stay in the cache.
const READ_MAX: usize = 128 << 10;

/// What the application sent.
#[derive(Debug)]
pub struct FlowSource {
    handle: Handle,
    /// Its end was read, or it was stopped.
    done: bool,
}

/// What the application receives. Dropping it unfinished resets the flow.
#[derive(Debug)]
pub struct FlowSink {
    handle: Handle,
    /// It was finished, or reset.
    done: bool,
}

impl FlowSource {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, done: false }
    }
}

impl FlowSink {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, done: false }
    }
}

impl Source for FlowSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.done {
            return Ok(None);
        }
        let result = std::future::poll_fn(|context| {
            let mut bytes = Bytes::new();
            let mut take = |received: &[u8]| bytes = Bytes::copy_from_slice(received);
            let read = self
                .handle
                .peek_engine(|engine, now, flow| engine.read_with(now, flow, READ_MAX, &mut take));
            match read {
                Ok(Read::Bytes(_)) => Poll::Ready(Ok(Some(bytes))),
                Ok(Read::End) => Poll::Ready(Ok(None)),
                Ok(Read::Blocked) => {
                    self.handle.waiters.readable.set(Some(context.waker().clone()));
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(self.handle.explain(error))),
            }
        })
        .await;
        // The window may have opened, or the flow ended.
        self.handle.wake_loop();
        self.done = !matches!(result, Ok(Some(_)));
        result
    }

    fn stop(&mut self) {
        if !self.done {
            self.done = true;
            self.handle.abort();
        }
    }
}

impl Drop for FlowSource {
    /// TCP cannot say "send no more" but by a reset; and without a reader the flow could never end.
    fn drop(&mut self) {
        self.stop();
    }
}

impl Sink for FlowSink {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let written = std::future::poll_fn(|context| {
                let written = self
                    .handle
                    .peek_engine(|engine, now, flow| engine.write(now, flow, &bytes));
                match written {
                    Ok(0) => {
                        self.handle.waiters.writable.set(Some(context.waker().clone()));
                        Poll::Pending
                    }
                    Ok(written) => Poll::Ready(Ok(written)),
                    Err(error) => Poll::Ready(Err(self.handle.explain(error))),
                }
            })
            .await?;
            self.handle.wake_loop();
            let _ = bytes.split_to(written);
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        if self.done {
            return Ok(());
        }
        self.done = true;
        let finished = self.handle.with_engine(|engine, now, flow| engine.finish(now, flow));
        finished.map_err(|error| self.handle.explain(error))
    }

    fn reset(&mut self) {
        if !self.done {
            self.done = true;
            self.handle.abort();
        }
    }
}

impl Drop for FlowSink {
    fn drop(&mut self) {
        self.reset();
    }
}
