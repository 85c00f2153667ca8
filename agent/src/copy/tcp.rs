//! The two directions of a kernel TCP connection.

use std::io;
use std::net::Shutdown;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{End, Sink, Source};
use crate::failure::Failure;

/// Both directions of a connection. (tokio's own halves finish what is dropped; ours must reset it.)
pub fn split(stream: TcpStream) -> End<TcpSource, TcpSink> {
    let stream = Rc::new(stream);
    End { source: TcpSource { stream: stream.clone(), buffer: BytesMut::new() }, sink: TcpSink { stream, finished: false } }
}

/// What the other end sends.
#[derive(Debug)]
pub struct TcpSource {
    stream: Rc<TcpStream>,
    buffer: BytesMut,
}

impl Source for TcpSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            self.stream.readable().await?;
            if self.buffer.capacity() < CHUNK / 4 {
                self.buffer.reserve(CHUNK);
            }
            match self.stream.try_read_buf(&mut self.buffer) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(self.buffer.split().freeze())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An idle connection holds no buffer.
                    self.buffer = BytesMut::new();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn stop(&mut self) {
        reset_on_close(&self.stream);
    }
}

/// What the other end receives. Dropping it unfinished resets the connection.
#[derive(Debug)]
pub struct TcpSink {
    stream: Rc<TcpStream>,
    finished: bool,
}

impl Sink for TcpSink {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.stream.try_write(&bytes) {
                Ok(written) => drop(bytes.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        self.finished = true;
        match SockRef::from(&*self.stream).shutdown(Shutdown::Write) {
            // The other end is gone already; that it got everything is known by its own end.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            other => Ok(other?),
        }
    }

    fn reset(&mut self) {
        self.finished = true;
        reset_on_close(&self.stream);
    }
}

impl Drop for TcpSink {
    fn drop(&mut self) {
        if !self.finished {
            reset_on_close(&self.stream);
        }
    }
}

/// With no lingering, closing sends a RST.
fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
}

/// Bytes read at a time.
const CHUNK: usize = 128 << 10;
