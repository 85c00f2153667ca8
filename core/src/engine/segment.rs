//! The last touch to a segment that smoltcp wrote: timestamp, checksum, segment size for the kernel.
//!
//! smoltcp takes a timestamp clock as a bare function without state. So that time stays an argument, its clock is
//! constant and the value is put in here, before the checksum is made.

use std::net::IpAddr;

use super::api::{Offload, PacketOut};
use crate::packet::checksum;
use crate::packet::{Flags, IPV4_LEN, IPV6_LEN, be16, be32, number};

const TCP_LEN: usize = 20;
/// Where the checksum stands in a TCP header.
const CHECKSUM_AT: usize = 16;

/// What a segment says, once it is ready to leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emitted {
    pub(super) packet: PacketOut,
    pub(super) flags: Flags,
    /// The sequence number after it.
    pub(super) sequence_end: u32,
    pub(super) acknowledgement: u32,
    /// The window field, unscaled.
    pub(super) window: u16,
}

/// Finishes the segment in `packet`. `timestamp` is our clock; `mss` what both sides allow without options.
pub(super) fn finish(packet: &mut [u8], timestamp: u32, offload: Offload, mss: u16) -> Option<Emitted> {
    let (version, ip_len) = if packet.first()? >> 4 == 4 {
        (4, IPV4_LEN)
    } else {
        (6, IPV6_LEN)
    };
    let (source, destination) = addresses(packet, version)?;
    let tcp = packet.get_mut(ip_len..).filter(|tcp| tcp.len() >= TCP_LEN)?;
    let header_len = usize::from(tcp[12] >> 4) * 4;
    set_timestamp(tcp.get_mut(TCP_LEN..header_len)?, timestamp);

    let mut sum = checksum::pseudo_header(source, destination, number::TCP, tcp.len());
    let field = if offload.checksum {
        sum.partial()
    } else {
        sum.add(tcp);
        sum.finish()
    };
    tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&field.to_be_bytes());

    let flags = Flags(tcp[13]);
    let payload = tcp.len() - header_len;
    let control = u32::from(flags.has(Flags::SYN)) + u32::from(flags.has(Flags::FIN));
    let segment = usize::from(mss).saturating_sub(header_len - TCP_LEN);
    let emitted = Emitted {
        flags,
        sequence_end: be32(tcp, 4)
            .wrapping_add(u32::try_from(payload).ok()?)
            .wrapping_add(control),
        acknowledgement: be32(tcp, 8),
        window: be16(tcp, 14),
        packet: PacketOut {
            len: packet.len(),
            partial_checksum: offload.checksum.then_some((u16::try_from(ip_len).ok()?, 16)),
            gso_size: if payload > segment {
                u16::try_from(segment).ok()
            } else {
                None
            },
            version,
        },
    };
    Some(emitted)
}

/// Overwrites the value of the timestamp option (RFC 7323 3.2), where there is one.
fn set_timestamp(mut options: &mut [u8], timestamp: u32) {
    loop {
        let length = match *options {
            [1, ..] => 1,
            [8, 10, ..] if options.len() >= 10 => {
                options[2..6].copy_from_slice(&timestamp.to_be_bytes());
                return;
            }
            [0, ..] | [] | [_] => return,
            [_, length, ..] => usize::from(length).max(2),
        };
        options = match options.get_mut(length..) {
            Some(rest) => rest,
            None => return,
        };
    }
}

fn addresses(packet: &[u8], version: u8) -> Option<(IpAddr, IpAddr)> {
    if version == 4 {
        let source = *packet.get(12..)?.first_chunk::<4>()?;
        let destination = *packet.get(16..)?.first_chunk::<4>()?;
        return Some((source.into(), destination.into()));
    }
    let source = *packet.get(8..)?.first_chunk::<16>()?;
    let destination = *packet.get(24..)?.first_chunk::<16>()?;
    Some((source.into(), destination.into()))
}
