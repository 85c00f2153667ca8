//! The TUN device: one queue, whole IP packets, with the offloads that the kernel grants.

mod linux;
pub mod rings;

use std::io;

use mesh_core::engine::{Offload, PacketOut};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::config;
use linux::Queue;

/// An open device. Dropping it removes it from the machine, and with it its addresses and routes.
#[derive(Debug)]
pub struct Tun {
    queue: AsyncFd<Queue>,
    offload: bool,
}

impl Tun {
    /// Creates the device and brings it up. Needs CAP_NET_ADMIN, a tokio runtime, and /dev/net/tun.
    pub fn open(config: &config::Capture) -> anyhow::Result<Self> {
        let (queue, offload) = Queue::open(config)?;
        if config.offload && !offload {
            tracing::warn!(target: "mesh_agent::tun", "the kernel grants no TUN offloads; throughput will be lower");
        }
        Ok(Self { queue: queue.register()?, offload })
    }

    /// What the kernel does for us.
    pub fn offload(&self) -> Offload {
        Offload { checksum: self.offload, segmentation: self.offload }
    }

    /// Waits until a packet can be read, or with `writing` one can be written.
    pub async fn ready(&self, writing: bool) -> io::Result<()> {
        let interest = if writing { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let _ = self.queue.ready(interest).await?;
        Ok(())
    }

    /// Reads one packet into `buffer` (at least [`BUFFER`] bytes); `None` when there is none now.
    pub fn recv<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let head = self.head();
        match self.queue.get_ref().read(buffer) {
            Ok(length) => Ok(buffer.get(head..length.max(head))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.clear(Ready::READABLE);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the packet that `out` describes, which stands in `buffer` behind [`HEAD`] bytes; false when there is no room.
    pub fn send(&self, buffer: &mut [u8], out: &PacketOut) -> io::Result<bool> {
        let start = HEAD - self.head();
        if self.offload {
            let header = vnet_header(&buffer[HEAD..HEAD + out.len], out);
            buffer[..HEAD].copy_from_slice(&header);
        }
        match self.queue.get_ref().write(&buffer[start..HEAD + out.len]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.clear(Ready::WRITABLE);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn head(&self) -> usize {
        if self.offload { HEAD } else { 0 }
    }

    fn clear(&self, ready: Ready) {
        // The readiness that was just disproved; a new edge sets it again.
        if let Some(Ok(mut guard)) = futures_util::FutureExt::now_or_never(self.queue.ready(interest(ready))) {
            guard.clear_ready_matching(ready);
        }
    }
}

fn interest(ready: Ready) -> Interest {
    if ready.is_writable() { Interest::WRITABLE } else { Interest::READABLE }
}

/// `struct virtio_net_hdr` in native byte order: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
fn vnet_header(packet: &[u8], out: &PacketOut) -> [u8; HEAD] {
    let mut header = [0; HEAD];
    let Some((start, offset)) = out.partial_checksum else { return header };
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    if let Some(segment) = out.gso_size {
        let data_offset = packet.get(usize::from(start) + 12).map_or(20, |byte| u16::from(byte >> 4) * 4);
        header[1] = if out.version == 4 { GSO_TCPV4 } else { GSO_TCPV6 };
        header[2..4].copy_from_slice(&(start + data_offset).to_ne_bytes());
        header[4..6].copy_from_slice(&segment.to_ne_bytes());
    }
    header
}

/// Bytes in front of a packet in a buffer for [`Tun::send`]: room for the vnet header.
pub const HEAD: usize = 10;
/// Bytes that a buffer must have.
pub const BUFFER: usize = HEAD + 65_535;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
