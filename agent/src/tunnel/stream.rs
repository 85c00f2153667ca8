//! One stream of an HTTP/3 tunnel: payload in DATA frames, without a copy.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mesh_core::h3::frame::{self, Decoder, Frame, Stream};
use mesh_core::h3::{H3Error, code};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::connection::Use;
use crate::copy::{Sink, Source};
use crate::failure::Failure;

/// With which code a stream is torn down; shared by its two halves.
#[derive(Clone, Debug)]
pub struct AbortCode(Rc<Cell<u64>>);

impl AbortCode {
    pub(super) fn new() -> Self {
        Self(Rc::new(Cell::new(code::REQUEST_CANCELLED)))
    }

    /// Says why the stream is going to be torn down.
    pub fn set(&self, code: u64) {
        self.0.set(code);
    }

    fn get(&self) -> VarInt {
        VarInt::from_u64(self.0.get()).unwrap_or(VarInt::from_u32(0x10c))
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct StreamSource {
    recv: RecvStream,
    decoder: Decoder,
    chunk: Bytes,
    ended: bool,
    code: AbortCode,
    _use: Rc<Use>,
}

impl StreamSource {
    pub(super) fn new(recv: RecvStream, code: AbortCode, used: Rc<Use>) -> Self {
        Self {
            recv,
            decoder: Decoder::new(Stream::Request),
            chunk: Bytes::new(),
            ended: false,
            code,
            _use: used,
        }
    }

    /// The next frame, or `None` at the end of the stream. Cancel-safe.
    pub(super) async fn frame(&mut self) -> Result<Option<Frame>, Failure> {
        loop {
            match self.decoder.next(&mut self.chunk) {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(error) => return Err(self.malformed(error)),
            }
            match self.recv.read_chunk(MAX_CHUNK, true).await {
                Ok(Some(chunk)) => self.chunk = chunk.bytes,
                Ok(None) if self.decoder.at_boundary() => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(None) => return Err(self.malformed(H3Error::Frame)),
                Err(error) => {
                    self.ended = true;
                    return Err(read_failure(error));
                }
            }
        }
    }

    fn malformed(&mut self, error: H3Error) -> Failure {
        self.code.set(error.code());
        self.stop();
        Failure::TunnelLost(format!("the peer broke the protocol: {error}"))
    }
}

impl Source for StreamSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.frame().await? {
                Some(Frame::Data(bytes)) if bytes.is_empty() => {}
                Some(Frame::Data(bytes)) => return Ok(Some(bytes)),
                // RFC 9114 4.4: only DATA once the tunnel is open.
                Some(Frame::Headers(_) | Frame::Settings(_) | Frame::GoAway(_)) => {
                    return Err(self.malformed(H3Error::FrameUnexpected));
                }
                None => return Ok(None),
            }
        }
    }

    fn recv_ready(&mut self) -> Option<Result<Option<Bytes>, Failure>> {
        // Nobody is woken by this; the next `recv` leaves its own waker.
        let mut context = Context::from_waker(Waker::noop());
        match std::pin::pin!(self.recv()).poll(&mut context) {
            Poll::Ready(received) => Some(received),
            Poll::Pending => None,
        }
    }

    fn stop(&mut self) {
        if !self.ended {
            self.ended = true;
            let _ = self.recv.stop(self.code.get());
        }
    }
}

impl Drop for StreamSource {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The sending side. Dropping it unfinished resets the stream (quinn's own would finish it).
#[derive(Debug)]
pub struct StreamSink {
    send: SendStream,
    finished: bool,
    code: AbortCode,
    _use: Rc<Use>,
}

impl StreamSink {
    pub(super) fn new(send: SendStream, code: AbortCode, used: Rc<Use>) -> Self {
        Self {
            send,
            finished: false,
            code,
            _use: used,
        }
    }

    /// Writes a HEADERS frame around an encoded section.
    pub(super) async fn headers(&mut self, section: &[u8]) -> Result<(), Failure> {
        self.send
            .write_all(&frame::headers(section))
            .await
            .map_err(write_failure)
    }

    /// With which code this stream is torn down.
    pub(super) fn abort_code(&self) -> AbortCode {
        self.code.clone()
    }
}

impl Sink for StreamSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let mut chunks = [Bytes::from(frame::data_head(bytes.len())), bytes];
        self.send.write_all_chunks(&mut chunks).await.map_err(write_failure)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.finished = true;
        self.send
            .finish()
            .map_err(|_| Failure::TunnelLost("the stream is closed".into()))
    }

    fn reset(&mut self) {
        self.finished = true;
        let _ = self.send.reset(self.code.get());
    }
}

impl Drop for StreamSink {
    fn drop(&mut self) {
        if !self.finished {
            self.reset();
        }
    }
}

fn read_failure(error: ReadError) -> Failure {
    match error {
        ReadError::Reset(code) => reset(code),
        ReadError::ConnectionLost(error) => super::connection::lost(&error),
        other => Failure::TunnelLost(other.to_string()),
    }
}

pub(super) fn write_failure(error: WriteError) -> Failure {
    match error {
        WriteError::Stopped(code) => reset(code),
        WriteError::ConnectionLost(error) => super::connection::lost(&error),
        other => Failure::TunnelLost(other.to_string()),
    }
}

fn reset(code: VarInt) -> Failure {
    match code.into_inner() {
        code::MESH_POLICY => Failure::PolicyChangeRemote(None),
        code => Failure::PeerReset(code),
    }
}

/// Bytes taken at a time.
const MAX_CHUNK: usize = 256 << 10;
