//! The application on machine B: a sink, a source and an echo, on one thread.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::measure::{ECHO, MESSAGE, SINK, SOURCE};

const CHUNK: usize = 256 << 10;

/// Serves until it is killed.
pub(crate) fn run(address: IpAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (sink, source, echo) = (listen(address, SINK)?, listen(address, SOURCE)?, listen(address, ECHO)?);
        loop {
            tokio::select! {
                accepted = sink.accept() => drop(tokio::spawn(swallow(accepted?.0))),
                accepted = source.accept() => drop(tokio::spawn(pour(accepted?.0))),
                accepted = echo.accept() => drop(tokio::spawn(answer(accepted?.0))),
            }
        }
    })
}

fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(address, port))?;
    Ok(socket.listen(4096)?)
}

async fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let buffer = vec![0x5a; CHUNK];
    loop {
        stream.write_all(&buffer).await?;
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        // The end of the stream between two messages is how a client leaves.
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
    }
}
