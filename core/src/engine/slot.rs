//! A smoltcp device that holds one packet in and one packet out, without a copy of its own.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Bytes of the largest IP packet.
const PACKET_MAX: usize = 65_535;

/// What every flow's interface is told about the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capabilities {
    pub(super) mtu: u16,
    pub(super) segmentation: bool,
}

impl Capabilities {
    fn of_device(self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        // Checksums are verified before, and made after smoltcp: the segment is changed on both sides of it.
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities.checksum.ipv4 = Checksum::Tx;
        if self.segmentation {
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(PACKET_MAX);
            // smoltcp drops IPv6 packets above the MTU, whatever their metadata says.
            capabilities.segmentation.tcpv6 = NonZeroUsize::new(usize::from(self.mtu));
        }
        capabilities
    }
}

/// The device. `written` says how many bytes of `out` are a packet.
pub(super) struct Slot<'p> {
    capabilities: Capabilities,
    incoming: Option<&'p [u8]>,
    out: &'p mut [u8],
    written: Option<usize>,
}

impl<'p> Slot<'p> {
    pub(super) fn new(capabilities: Capabilities, incoming: Option<&'p [u8]>, out: &'p mut [u8]) -> Self {
        Self {
            capabilities,
            incoming,
            out,
            written: None,
        }
    }

    /// The packet that was written, if any.
    pub(super) fn written(&self) -> Option<usize> {
        self.written
    }
}

impl Device for Slot<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let incoming = self.incoming.take()?;
        Some((
            Incoming(incoming),
            Outgoing {
                out: &mut *self.out,
                written: &mut self.written,
            },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing {
            out: &mut *self.out,
            written: &mut self.written,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.of_device()
    }
}

pub(super) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Outgoing<'a> {
    out: &'a mut [u8],
    written: &'a mut Option<usize>,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        if let Some(room) = self.out.get_mut(..len) {
            *self.written = Some(len);
            return f(room);
        }
        // The caller's buffer is too small for what it asked: the packet is lost, as on any full queue.
        f(&mut vec![0; len])
    }
}
