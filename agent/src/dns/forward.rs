//! Asks the machine's own resolvers what is none of the mesh's business. Each query has a socket of its own (a fresh
//! random port) that is marked, so that it never comes back to us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::socket;

/// Asks one server after the other over UDP; the first answer with the query's id wins. An answer that was cut short (TC)
/// is passed on: the application then asks again over TCP.
pub(super) async fn udp(query: &[u8], servers: &[SocketAddr], mark: u32) -> Option<Vec<u8>> {
    for server in servers {
        match tokio::time::timeout(PER_SERVER, ask_udp(query, *server, mark)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(target: "mesh_agent::dns", %server, %error, "upstream failed"),
            Err(_) => tracing::debug!(target: "mesh_agent::dns", %server, "upstream did not answer in time"),
        }
    }
    None
}

/// The same over TCP.
pub(super) async fn tcp(query: &[u8], servers: &[SocketAddr], mark: u32) -> Option<Vec<u8>> {
    for server in servers {
        match tokio::time::timeout(PER_SERVER, ask_tcp(query, *server, mark)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(target: "mesh_agent::dns", %server, %error, "upstream failed"),
            Err(_) => tracing::debug!(target: "mesh_agent::dns", %server, "upstream did not answer in time"),
        }
    }
    None
}

async fn ask_udp(query: &[u8], server: SocketAddr, mark: u32) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = tokio::net::UdpSocket::from_std(socket::udp(SocketAddr::new(any, 0), mark)?)?;
    // Connected: the kernel drops what does not come from this server.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= HEADER && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(query: &[u8], server: SocketAddr, mark: u32) -> std::io::Result<Vec<u8>> {
    let mut stream = socket::connect(server, mark, PER_SERVER).await?;
    let length = u16::try_from(query.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if answer.len() < HEADER || answer[..2] != query[..2] {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(answer)
}

const PER_SERVER: Duration = Duration::from_secs(2);
const MAX_MESSAGE: usize = 65_535;
const HEADER: usize = 12;
