//! One stream of a tunnel, whatever carries it.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use super::{http2, http3};
use crate::copy::{Sink, Source};
use crate::failure::Failure;

/// Why a stream is torn down; each kind of tunnel has its own code for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// It is not needed any more.
    Cancelled,
    /// The connection behind it broke.
    Connect,
    /// Policy changed.
    Policy,
    /// It was not served, and may be tried elsewhere.
    Rejected,
    /// Nothing is wrong; the rest is not wanted.
    Unwanted,
    /// The peer broke the protocol.
    Protocol(mesh_core::h3::H3Error),
}

/// Why a stream is torn down; shared by its two halves.
#[derive(Clone, Debug)]
pub struct AbortCode(Rc<Cell<Abort>>);

impl AbortCode {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(Abort::Cancelled)))
    }

    /// Says why the stream is going to be torn down.
    pub fn set(&self, abort: Abort) {
        self.0.set(abort);
    }

    pub(super) fn get(&self) -> Abort {
        self.0.get()
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct StreamSource(SourceKind);

#[derive(Debug)]
enum SourceKind {
    Http3(http3::Source),
    Http2(http2::Source),
}

impl From<http3::Source> for StreamSource {
    fn from(half: http3::Source) -> Self {
        Self(SourceKind::Http3(half))
    }
}

impl From<http2::Source> for StreamSource {
    fn from(half: http2::Source) -> Self {
        Self(SourceKind::Http2(half))
    }
}

impl Source for StreamSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        match &mut self.0 {
            SourceKind::Http3(source) => source.recv().await,
            SourceKind::Http2(source) => source.recv().await,
        }
    }

    fn recv_ready(&mut self) -> Option<Result<Option<Bytes>, Failure>> {
        match &mut self.0 {
            SourceKind::Http3(source) => source.recv_ready(),
            SourceKind::Http2(source) => source.recv_ready(),
        }
    }

    fn stop(&mut self) {
        match &mut self.0 {
            SourceKind::Http3(source) => source.stop(),
            SourceKind::Http2(source) => source.stop(),
        }
    }
}

/// The sending side. Dropping it unfinished resets the stream.
#[derive(Debug)]
pub struct StreamSink(SinkKind);

#[derive(Debug)]
enum SinkKind {
    Http3(http3::Sink),
    Http2(http2::Sink),
}

impl From<http3::Sink> for StreamSink {
    fn from(half: http3::Sink) -> Self {
        Self(SinkKind::Http3(half))
    }
}

impl From<http2::Sink> for StreamSink {
    fn from(half: http2::Sink) -> Self {
        Self(SinkKind::Http2(half))
    }
}

impl Sink for StreamSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        match &mut self.0 {
            SinkKind::Http3(sink) => sink.send(bytes).await,
            SinkKind::Http2(sink) => sink.send(bytes).await,
        }
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        match &mut self.0 {
            SinkKind::Http3(sink) => sink.finish().await,
            SinkKind::Http2(sink) => sink.finish().await,
        }
    }

    fn reset(&mut self) {
        match &mut self.0 {
            SinkKind::Http3(sink) => sink.reset(),
            SinkKind::Http2(sink) => sink.reset(),
        }
    }
}
