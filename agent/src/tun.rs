//! The TUN device: opened by the `tun` crate, then read and written by ourselves, because its offloads need the vnet
//! header and its reader and writer copy.
//!
//! With offloads every packet has a 10-byte `virtio_net_hdr` in front (linux/virtio_net.h), native-endian; it is made
//! and taken off here.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use mesh_core::engine::{Offload, PacketOut};
use tokio::io::unix::AsyncFd;

use crate::config;

mod linux;
pub mod rings;

/// Largest packet.
pub const MAX_PACKET: usize = 65_535;
/// Room that a read needs: the largest packet behind a vnet header.
pub const READ_BYTES: usize = VNET_HEADER + MAX_PACKET;

const VNET_HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error(
        "/dev/net/tun does not exist: load the kernel module `tun` (modprobe tun), or give the container the device"
    )]
    NoDevice,
    #[error(
        "/dev/net/tun may not be opened: it must have mode 0666 (udev does that; else `chmod 666 /dev/net/tun`), and the \
         unit must have DeviceAllow=/dev/net/tun rw"
    )]
    NotAllowed,
    #[error("the device {0} may not be created: the agent needs CAP_NET_ADMIN (AmbientCapabilities=CAP_NET_ADMIN)")]
    NotPermitted(String),
    #[error("the device {0} is in use by another process: stop the other agent, or set capture.tun to another name")]
    Busy(String),
    #[error("the name {0:?} (capture.tun) is not one of a network device: at most 15 characters, no slash or space")]
    Name(String),
    #[error("creating the device {name} failed: {error}")]
    Other { name: String, error: String },
}

/// One queue of the TUN device.
#[derive(Debug)]
pub struct Tun {
    file: File,
    offload: Offload,
}

impl Tun {
    /// Creates the device with the MTU of the settings; it is down and has no address yet ([`crate::kernel`] does
    /// that). It vanishes when this is dropped.
    pub fn open(config: &config::Capture) -> Result<Self, TunError> {
        if config.offload {
            match linux::open(&config.tun, config.mtu, true) {
                Ok(file) => {
                    let offload = Offload {
                        checksum: true,
                        segmentation: true,
                    };
                    return Ok(Self { file, offload });
                }
                Err(linux::OpenError::OffloadRefused(error)) => {
                    tracing::warn!(%error, "the kernel refuses offloads for the TUN device; going on without, slower");
                }
                Err(linux::OpenError::Tun(error)) => return Err(error),
            }
        }
        match linux::open(&config.tun, config.mtu, false) {
            Ok(file) => Ok(Self {
                file,
                offload: Offload::default(),
            }),
            Err(linux::OpenError::Tun(error)) => Err(error),
            Err(linux::OpenError::OffloadRefused(error)) => Err(TunError::Other {
                name: config.tun.clone(),
                error: error.to_string(),
            }),
        }
    }

    /// Any descriptor that gives and takes whole packets without vnet header, such as a datagram socket in a test. It
    /// must be non-blocking.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            offload: Offload::default(),
        }
    }

    /// Registers it with the runtime of this thread.
    pub fn register(self) -> io::Result<AsyncFd<Self>> {
        linux::register(self)
    }

    /// What the kernel does for us.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Reads one packet into `buffer` ([`READ_BYTES`] long); gives where it lies in it.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<std::ops::Range<usize>> {
        let read = (&self.file).read(buffer)?;
        let header = self.header_len();
        Ok(header.min(read)..read)
    }

    /// Writes one packet.
    pub fn write(&self, packet: &[u8], meta: &PacketOut) -> io::Result<()> {
        let header = vnet_header(packet, meta);
        let header = &header[..self.header_len()];
        (&self.file)
            .write_vectored(&[IoSlice::new(header), IoSlice::new(packet)])
            .map(|_| ())
    }

    fn header_len(&self) -> usize {
        if self.offload.checksum { VNET_HEADER } else { 0 }
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// `struct virtio_net_hdr`: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
fn vnet_header(packet: &[u8], meta: &PacketOut) -> [u8; VNET_HEADER] {
    let mut header = [0; VNET_HEADER];
    let Some((start, offset)) = meta.partial_checksum else {
        return header;
    };
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    let Some(gso_size) = meta.gso_size else { return header };
    // Bytes 12 of the TCP header: its length in words, in the upper half.
    let Some(tcp_len) = packet.get(usize::from(start) + 12).map(|byte| u16::from(byte >> 4) * 4) else {
        return header;
    };
    let headers = start + tcp_len;
    if packet.len() > usize::from(headers) + usize::from(gso_size) {
        header[1] = if meta.version == 4 { GSO_TCPV4 } else { GSO_TCPV6 };
        header[2..4].copy_from_slice(&headers.to_ne_bytes());
        header[4..6].copy_from_slice(&gso_size.to_ne_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(partial: Option<(u16, u16)>, gso_size: Option<u16>) -> PacketOut {
        PacketOut {
            len: 0,
            partial_checksum: partial,
            gso_size,
            version: 4,
        }
    }

    #[test]
    fn without_offload_the_header_is_zero() {
        assert_eq!(vnet_header(&[0x45; 60], &meta(None, Some(1460))), [0; 10]);
    }

    #[test]
    fn a_small_packet_needs_no_segmentation() {
        let mut packet = [0; 140];
        packet[32] = 0x80;
        let header = vnet_header(&packet, &meta(Some((20, 16)), Some(1460)));
        assert_eq!(header[0], NEEDS_CSUM);
        assert_eq!(header[1], 0);
        assert_eq!(u16::from_ne_bytes([header[6], header[7]]), 20);
        assert_eq!(u16::from_ne_bytes([header[8], header[9]]), 16);
    }

    #[test]
    fn a_large_packet_is_to_be_split() {
        let mut packet = [0; 5000];
        packet[32] = 0x80;
        let header = vnet_header(&packet, &meta(Some((20, 16)), Some(1460)));
        assert_eq!(header[1], GSO_TCPV4);
        assert_eq!(u16::from_ne_bytes([header[2], header[3]]), 52);
        assert_eq!(u16::from_ne_bytes([header[4], header[5]]), 1460);
    }

    #[test]
    fn a_packet_without_room_for_a_tcp_header_is_left_alone() {
        assert_eq!(vnet_header(&[0; 24], &meta(Some((20, 16)), Some(1460)))[1], 0);
    }
}
