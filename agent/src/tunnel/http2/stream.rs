//! One stream of an HTTP/2 tunnel: payload in DATA frames, half-close by END_STREAM, abort by RST_STREAM.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use mesh_core::h3::code;

use super::lost;
use crate::copy;
use crate::failure::Failure;
use crate::tunnel::link::Use;
use crate::tunnel::stream::{Abort, AbortCode};

/// The receiving side.
#[derive(Debug)]
pub(in crate::tunnel) struct Source {
    /// Gone when nothing more is wanted.
    recv: Option<RecvStream>,
    /// Given out and not yet given back to the peer's window: what was taken last may still be on its way.
    taken: usize,
    _use: Rc<Use>,
}

impl Source {
    pub(super) fn new(recv: RecvStream, used: Rc<Use>) -> Self {
        Self {
            recv: Some(recv),
            taken: 0,
            _use: used,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failure>> {
        let Some(recv) = &mut self.recv else {
            return Poll::Ready(Ok(None));
        };
        let taken = std::mem::take(&mut self.taken);
        if taken > 0 {
            let _ = recv.flow_control().release_capacity(taken);
        }
        loop {
            match std::task::ready!(recv.poll_data(context)) {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => {
                    self.taken = bytes.len();
                    return Poll::Ready(Ok(Some(bytes)));
                }
                // Everything was sent; it is only our rest that is not wanted (RFC 9113 8.1). h2 forgets that it saw the end.
                Some(Err(error)) if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(Ok(None));
                }
                Some(Err(error)) => return Poll::Ready(Err(lost(&error))),
                None => return Poll::Ready(Ok(None)),
            }
        }
    }
}

impl copy::Source for Source {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        poll_fn(|context| self.poll(context)).await
    }

    fn recv_ready(&mut self) -> Option<Result<Option<Bytes>, Failure>> {
        // Nobody is woken by this; the next `recv` leaves its own waker.
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(received) => Some(received),
            Poll::Pending => None,
        }
    }

    fn stop(&mut self) {
        // HTTP/2 knows no STOP_SENDING: once the other half is done too, dropping this resets the stream.
        self.recv = None;
    }
}

/// The sending side. Dropping it unfinished resets the stream.
#[derive(Debug)]
pub(in crate::tunnel) struct Sink {
    send: SendStream<Bytes>,
    finished: bool,
    abort: AbortCode,
    _use: Rc<Use>,
}

impl Sink {
    pub(super) fn new(send: SendStream<Bytes>, abort: AbortCode, used: Rc<Use>) -> Self {
        Self {
            send,
            finished: false,
            abort,
            _use: used,
        }
    }

    /// Whether the peer reset the stream without an error: it has sent everything, and wants no more of us.
    fn is_unwanted(&mut self) -> bool {
        let reset = self.send.poll_reset(&mut Context::from_waker(Waker::noop()));
        matches!(reset, Poll::Ready(Ok(Reason::NO_ERROR)))
    }

    /// Bytes that the windows and the send buffer take now; waits while there is no room.
    async fn room(&mut self, wanted: usize) -> Result<usize, Failure> {
        self.send.reserve_capacity(wanted);
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Ok(room);
            }
            match poll_fn(|context| self.send.poll_capacity(context)).await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(Failure::TunnelLost("the stream is closed".into())),
            }
        }
    }
}

impl copy::Sink for Sink {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let room = self.room(bytes.len()).await?.min(bytes.len());
            self.send
                .send_data(bytes.split_to(room), false)
                .map_err(|error| lost(&error))?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.finished = true;
        match self.send.send_data(Bytes::new(), true) {
            Err(error) if !self.is_unwanted() => Err(lost(&error)),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.finished = true;
        self.send.send_reset(number(self.abort.get()));
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            copy::Sink::reset(self);
        }
    }
}

/// What a peer's RST_STREAM means.
pub(super) fn reset(reason: Reason) -> Failure {
    match u32::from(reason) {
        code if u64::from(code) == code::MESH_POLICY => Failure::PolicyChangeRemote(None),
        code => Failure::PeerReset(code.into()),
    }
}

/// The code on the wire (RFC 9113 7).
pub(super) fn number(abort: Abort) -> Reason {
    match abort {
        Abort::Cancelled => Reason::CANCEL,
        Abort::Connect => Reason::CONNECT_ERROR,
        Abort::Policy => Reason::from(u32::try_from(code::MESH_POLICY).unwrap_or(u32::MAX)),
        Abort::Rejected => Reason::REFUSED_STREAM,
        Abort::Unwanted => Reason::NO_ERROR,
        Abort::Protocol(_) => Reason::PROTOCOL_ERROR,
    }
}
