//! Our own sockets: marked, so that they never enter the TUN.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// A marked UDP socket, bound, with large buffers.
pub fn udp(bind: SocketAddr, mark: u32) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    set_mark(&socket, mark)?;
    if bind.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel caps these at net.core.{r,w}mem_max.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    Ok(socket.into())
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

/// A marked TCP listener.
pub fn listen(bind: SocketAddr, mark: u32) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(bind), Type::STREAM, Some(Protocol::TCP))?;
    set_mark(&socket, mark)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    socket.listen(1024)?;
    tokio::net::TcpListener::from_std(socket.into())
}

fn set_mark(socket: &Socket, mark: u32) -> io::Result<()> {
    if mark == 0 {
        return Ok(());
    }
    socket.set_mark(mark)
}

const BUFFER: usize = 4 << 20;
