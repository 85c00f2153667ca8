//! Our own sockets: marked, so that they never enter the TUN.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// A marked UDP socket, bound, with large buffers.
pub fn udp(bind: SocketAddr, mark: u32) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    set_mark(&socket, mark)?;
    if bind.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    enlarge(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    Ok(socket.into())
}

/// A marked UDP socket for one flow: it hears `peer` alone, and that nobody listens there.
pub fn udp_to(peer: SocketAddr, mark: u32) -> io::Result<tokio::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))?;
    set_mark(&socket, mark)?;
    // Best effort: with less a burst is cut sooner.
    let _ = socket.set_recv_buffer_size(FLOW_BUFFER);
    socket.set_nonblocking(true)?;
    socket.connect(&peer.into())?;
    tokio::net::UdpSocket::from_std(socket.into())
}

/// A marked TCP connection, with no delay, within `timeout`.
pub async fn connect(peer: SocketAddr, mark: u32, timeout: Duration) -> io::Result<tokio::net::TcpStream> {
    let socket = match peer {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    set_mark(&socket2::SockRef::from(&socket), mark)?;
    let stream = tokio::time::timeout(timeout, socket.connect(peer)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Probes a connection that is quiet for long (as ztunnel does it).
pub fn keep_alive(stream: &tokio::net::TcpStream) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEP_ALIVE)
        .with_interval(KEEP_ALIVE)
        .with_retries(9);
    // Without it a dead peer is noticed later.
    let _ = socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// A marked TCP listener.
pub fn listen(bind: SocketAddr, mark: u32) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    set_mark(&socket, mark)?;
    if bind.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    socket.listen(1024)?;
    tokio::net::TcpListener::from_std(socket.into())
}

/// Large buffers, best effort. CAP_NET_ADMIN may pass the limits net.core.{r,w}mem_max; without it they cap.
fn enlarge(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
}

/// 0 is no mark: for tests without CAP_NET_ADMIN.
fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    if mark == 0 {
        return Ok(());
    }
    socket.set_mark(mark).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::new(
            error.kind(),
            "a socket may not be marked, and would be captured by ourselves: the agent needs CAP_NET_ADMIN",
        ),
        _ => error,
    })
}

const BUFFER: usize = 4 << 20;
/// Holds several of the largest datagrams.
const FLOW_BUFFER: usize = 1 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_and_a_connection() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 0).unwrap();
        let address = listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(connect(address, 0, Duration::from_secs(5)), listener.accept());
        assert!(stream.unwrap().nodelay().unwrap());
        assert_eq!(accepted.unwrap().1.ip(), address.ip());
    }

    #[tokio::test]
    async fn both_families_reach_the_unspecified_address() {
        let socket = udp(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)), 0).unwrap();
        let port = socket.local_addr().unwrap().port();
        let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"x", ("127.0.0.1", port)).unwrap();
        let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut [0; 8])).await;
        assert_eq!(received.unwrap().unwrap(), 1);
    }
}
