//! The two directions of a kernel TCP connection.

use std::io::{self, IoSlice};
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
    End {
        source: TcpSource {
            stream: stream.clone(),
            buffer: BytesMut::new(),
        },
        sink: TcpSink {
            stream,
            finished: false,
        },
    }
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

    async fn send_all(&mut self, pieces: &mut Vec<Bytes>) -> Result<(), Failure> {
        let mut at = 0;
        while at < pieces.len() {
            let written = {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = slices.len().min(pieces.len() - at);
                for (slice, piece) in slices.iter_mut().zip(&pieces[at..]) {
                    *slice = IoSlice::new(piece);
                }
                self.stream.try_write_vectored(&slices[..count])
            };
            match written {
                Ok(mut written) => {
                    while let Some(piece) = pieces.get_mut(at).filter(|piece| piece.len() <= written) {
                        written -= piece.len();
                        at += 1;
                    }
                    if let Some(piece) = pieces.get_mut(at) {
                        let _ = piece.split_to(written);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error.into()),
            }
        }
        pieces.clear();
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

/// Pieces written at a time.
const SLICES: usize = 64;
/// Bytes read at a time.
const CHUNK: usize = 128 << 10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// More pieces than one call takes, empty ones among them, into a socket that takes a part at a time.
    #[tokio::test]
    async fn pieces_arrive_whole_and_in_order() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
        let (mut reader, _) = listener.accept().await.unwrap();
        let mut pieces: Vec<Bytes> = (0..300_u32)
            .map(|at| Bytes::from(at.to_be_bytes().repeat(usize::try_from(at % 7 * 300).unwrap())))
            .collect();
        let expected = pieces.concat();
        let mut end = split(stream);
        let send = async {
            end.sink.send_all(&mut pieces).await.unwrap();
            end.sink.finish().await.unwrap();
        };
        let mut got = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut got);
        let ((), read) = tokio::join!(send, read);
        read.unwrap();
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
        assert!(pieces.is_empty());
    }
}
