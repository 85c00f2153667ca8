//! The two directions of a kernel UDP socket that is connected: each piece is one datagram.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::{End, Sink, Source};
use crate::failure::Failure;

/// Both directions of a socket. The source ends when nothing passed in either for as long as `idle` says, if it does.
pub fn split(socket: UdpSocket, idle: Option<Duration>) -> End<UdpSource, UdpSink> {
    let socket = Rc::new(Shared {
        socket,
        active: Cell::new(Instant::now()),
    });
    End {
        source: UdpSource {
            shared: socket.clone(),
            buffer: BytesMut::new(),
            idle,
        },
        sink: UdpSink(socket),
    }
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    /// When something passed last.
    active: Cell<Instant>,
}

impl Shared {
    /// What ICMP said of something that was sent. The kernel tells of it apart from what can be read.
    fn take_error(&self) -> std::io::Result<()> {
        // Asked for again only when there is another one.
        let _ = self.socket.try_io(Interest::ERROR, || {
            Err::<(), _>(std::io::Error::from(std::io::ErrorKind::WouldBlock))
        });
        self.socket.take_error()?.map_or(Ok(()), Err)
    }
}

/// What the other end sends.
#[derive(Debug)]
pub struct UdpSource {
    shared: Rc<Shared>,
    buffer: BytesMut,
    idle: Option<Duration>,
}

impl UdpSource {
    /// Whether there may be something to read; false once nothing passed for too long.
    async fn readable(&self) -> Result<bool, Failure> {
        loop {
            let until = self.idle.map(|idle| self.shared.active.get() + idle);
            tokio::select! {
                ready = self.shared.socket.ready(Interest::READABLE | Interest::ERROR) => {
                    let ready = ready?;
                    if ready.is_error() {
                        self.shared.take_error()?;
                    }
                    if ready.is_readable() {
                        return Ok(true);
                    }
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    if self.idle.is_some_and(|idle| self.shared.active.get().elapsed() >= idle) {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

impl Source for UdpSource {
    async fn recv(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.readable().await? {
            if self.buffer.capacity() < LARGEST {
                self.buffer.reserve(CHUNK);
            }
            match self.shared.socket.try_recv_buf(&mut self.buffer) {
                Ok(_) => {
                    self.shared.active.set(Instant::now());
                    return Ok(Some(self.buffer.split().freeze()));
                }
                // An idle flow holds no buffer.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.buffer = BytesMut::new(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    fn stop(&mut self) {}
}

/// What the other end receives.
#[derive(Debug)]
pub struct UdpSink(Rc<Shared>);

impl Sink for UdpSink {
    async fn send(&mut self, payload: Bytes) -> Result<(), Failure> {
        self.0.active.set(Instant::now());
        match self.0.socket.send(&payload).await {
            Ok(_) => Ok(()),
            // What the path does not take is lost, as any datagram may be.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32) => Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    fn reset(&mut self) {}
}

/// Room for the largest datagram.
const LARGEST: usize = 65_535;
/// Room for one of the largest, or many small ones.
const CHUNK: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (UdpSocket, UdpSocket) {
        let (one, other) = (
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        );
        one.connect(other.local_addr().unwrap()).await.unwrap();
        other.connect(one.local_addr().unwrap()).await.unwrap();
        (one, other)
    }

    #[tokio::test]
    async fn datagrams_keep_their_bounds_however_large() {
        let (one, other) = pair().await;
        let mut end = split(one, None);
        for length in [0, 1, 1500, 65_507] {
            other.send(&vec![7; length]).await.unwrap();
            assert_eq!(
                end.source.recv().await.unwrap().map(|payload| payload.len()),
                Some(length)
            );
            end.sink.send(vec![8; length].into()).await.unwrap();
            let mut buffer = vec![0; LARGEST];
            assert_eq!(other.recv(&mut buffer).await.unwrap(), length);
        }
        end.sink.send(vec![8; 65_508].into()).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_listens() {
        let (one, other) = pair().await;
        drop(other);
        let mut end = split(one, None);
        end.sink.send(Bytes::from_static(b"x")).await.unwrap();
        assert!(matches!(end.source.recv().await, Err(Failure::Refused(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_sending_counts() {
        let (one, _other) = pair().await;
        let idle = Duration::from_secs(60);
        let started = Instant::now();
        let mut end = split(one, Some(idle));
        let sending = async {
            tokio::time::sleep(idle / 2).await;
            end.sink.send(Bytes::new()).await.unwrap();
        };
        let (received, ()) = tokio::join!(end.source.recv(), sending);
        assert!(received.unwrap().is_none());
        assert!(started.elapsed() >= idle * 3 / 2, "{:?}", started.elapsed());
    }
}
