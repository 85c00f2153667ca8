//! The device that a flow's smoltcp interface sees: one packet in, one packet out.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant as SmolInstant;

use super::Offload;

/// A one-packet device. Transmission goes straight into the caller's buffer; replies made while a packet is taken in go to
/// `replies`, because then there is no buffer.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    pub(super) received: Option<&'a [u8]>,
    pub(super) out: Output<'a>,
    pub(super) mtu: usize,
    pub(super) offload: Offload,
}

/// Where a packet is written.
#[derive(Debug)]
pub(super) enum Output<'a> {
    /// The caller's buffer, once: then (bytes, segment size) of what was written.
    Buffer(&'a mut [u8], Option<(usize, Option<u16>)>),
    /// A queue of whole packets.
    Queue(&'a mut Vec<Vec<u8>>),
}

impl Device for Slot<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Transmit<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: SmolInstant) -> Option<(Received<'_>, Transmit<'_>)> {
        let packet = self.received.take()?;
        Some((
            Received(packet),
            Transmit {
                out: &mut self.out,
                segment: None,
            },
        ))
    }

    fn transmit(&mut self, _now: SmolInstant) -> Option<Transmit<'_>> {
        if matches!(self.out, Output::Buffer(_, Some(_))) {
            return None;
        }
        Some(Transmit {
            out: &mut self.out,
            segment: None,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // With checksum offload the kernel hands over unfinished checksums, so verifying would drop everything.
        capabilities.checksum.tcp = if self.offload.checksum {
            Checksum::None
        } else {
            Checksum::Both
        };
        if self.offload.checksum && self.offload.segmentation {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(MAX_PACKET);
            capabilities.segmentation.tcpv6 = NonZeroUsize::new(MAX_PACKET);
        }
        capabilities
    }
}

/// Hands the packet over.
pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

/// Takes one packet.
pub(super) struct Transmit<'a> {
    out: &'a mut dyn Sink,
    segment: Option<u16>,
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut filled = None;
        let mut fill = Some(fill);
        self.out.packet(length, self.segment, &mut |buffer| {
            if let Some(fill) = fill.take() {
                filled = Some(fill(buffer));
            }
        });
        match filled {
            Some(result) => result,
            None => unreachable!("a sink fills its packet exactly once"),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(std::num::NonZero::get);
    }
}

/// Erases the lifetime of [`Output`], so that a token needs one only.
trait Sink {
    fn packet(&mut self, length: usize, segment: Option<u16>, fill: &mut dyn FnMut(&mut [u8]));
}

impl Sink for Output<'_> {
    fn packet(&mut self, length: usize, segment: Option<u16>, fill: &mut dyn FnMut(&mut [u8])) {
        match self {
            Output::Buffer(buffer, written) if length <= buffer.len() => {
                fill(&mut buffer[..length]);
                *written = Some((length, segment));
            }
            Output::Buffer(..) => fill(&mut vec![0; length]),
            Output::Queue(packets) => {
                let mut packet = vec![0; length];
                fill(&mut packet);
                packets.push(packet);
            }
        }
    }
}

/// The largest IP packet.
pub(super) const MAX_PACKET: usize = 65_535;
