//! One stream of an HTTP/3 tunnel: payload in DATA frames, without a copy.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mesh_core::h3::frame::{self, Decoder, Frame, Stream};
use mesh_core::h3::{H3Error, code};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::lost;
use crate::copy::{self, Sink as _, Source as _};
use crate::failure::Failure;
use crate::tunnel::link::Use;
use crate::tunnel::stream::{Abort, AbortCode};

/// The receiving side.
#[derive(Debug)]
pub(in crate::tunnel) struct Source {
    recv: RecvStream,
    decoder: Decoder,
    chunk: Bytes,
    ended: bool,
    code: AbortCode,
    _use: Rc<Use>,
}

impl Source {
    pub(in crate::tunnel) fn new(recv: RecvStream, code: AbortCode, used: Rc<Use>) -> Self {
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
    pub(in crate::tunnel) async fn frame(&mut self) -> Result<Option<Frame>, Failure> {
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

    /// With which code this stream is torn down.
    pub(in crate::tunnel) fn abort_code(&self) -> AbortCode {
        self.code.clone()
    }

    fn malformed(&mut self, error: H3Error) -> Failure {
        self.code.set(Abort::Protocol(error));
        self.stop();
        Failure::Protocol(error.to_string())
    }
}

impl copy::Source for Source {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.frame().await? {
                Some(Frame::Data(bytes)) if bytes.is_empty() => {}
                Some(Frame::Data(bytes)) => return Ok(Some(bytes)),
                // RFC 9114 4.4: only DATA once the tunnel is open.
                Some(Frame::Headers(_) | Frame::Settings(_) | Frame::GoAway(_) | Frame::Lossy) => {
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
            let _ = self.recv.stop(number(self.code.get()));
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The sending side. Dropping it unfinished resets the stream (quinn's own would finish it).
#[derive(Debug)]
pub(in crate::tunnel) struct Sink {
    send: SendStream,
    finished: bool,
    code: AbortCode,
    _use: Rc<Use>,
}

impl Sink {
    pub(in crate::tunnel) fn new(send: SendStream, code: AbortCode, used: Rc<Use>) -> Self {
        Self {
            send,
            finished: false,
            code,
            _use: used,
        }
    }

    /// Writes a HEADERS frame around an encoded section.
    pub(in crate::tunnel) async fn headers(&mut self, section: &[u8]) -> Result<(), Failure> {
        self.send
            .write_all(&frame::headers(section))
            .await
            .map_err(write_failure)
    }

    /// With which code this stream is torn down.
    pub(in crate::tunnel) fn abort_code(&self) -> AbortCode {
        self.code.clone()
    }

    /// The stream's number in QUIC.
    pub(super) fn id(&self) -> u64 {
        VarInt::from(self.send.id()).into_inner()
    }

    /// Sends these bytes with a head before them, in one DATA frame.
    pub(super) async fn send_with_head(&mut self, head: Vec<u8>, bytes: Bytes) -> Result<(), Failure> {
        let mut start = frame::data_head(head.len() + bytes.len());
        start.extend_from_slice(&head);
        let mut chunks = [Bytes::from(start), bytes];
        self.send.write_all_chunks(&mut chunks).await.map_err(write_failure)
    }
}

impl copy::Sink for Sink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), Failure> {
        self.send_with_head(Vec::new(), bytes).await
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.finished = true;
        self.send
            .finish()
            .map_err(|_| Failure::TunnelLost("the stream is closed".into()))
    }

    fn reset(&mut self) {
        self.finished = true;
        let _ = self.send.reset(number(self.code.get()));
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if !self.finished {
            self.reset();
        }
    }
}

fn read_failure(error: ReadError) -> Failure {
    match error {
        ReadError::Reset(code) => reset(code),
        ReadError::ConnectionLost(error) => lost(&error),
        other => Failure::TunnelLost(other.to_string()),
    }
}

pub(super) fn write_failure(error: WriteError) -> Failure {
    match error {
        WriteError::Stopped(code) => reset(code),
        WriteError::ConnectionLost(error) => lost(&error),
        other => Failure::TunnelLost(other.to_string()),
    }
}

fn reset(code: VarInt) -> Failure {
    match code.into_inner() {
        code::MESH_POLICY => Failure::PolicyChangeRemote(None),
        code => Failure::PeerReset(code),
    }
}

/// The code on the wire (RFC 9114 8.1).
fn number(abort: Abort) -> VarInt {
    let number = match abort {
        Abort::Cancelled => code::REQUEST_CANCELLED,
        Abort::Connect => code::CONNECT_ERROR,
        Abort::Policy => code::MESH_POLICY,
        Abort::Rejected => code::REQUEST_REJECTED,
        Abort::Unwanted => code::NO_ERROR,
        Abort::Protocol(error) => error.code(),
    };
    VarInt::from_u64(number).unwrap_or(VarInt::from_u32(0x10c))
}

/// Bytes taken at a time.
const MAX_CHUNK: usize = 256 << 10;
