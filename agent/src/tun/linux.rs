//! The ioctl and the two system calls that the `tun` crate does not offer: offloads, and plain non-blocking reads and
//! writes of its descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, anyhow};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tun::AbstractDevice as _;

use crate::config;

/// The device with its descriptor.
pub(super) struct Queue {
    device: tun::Device,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("fd", &self.as_raw_fd()).finish()
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl Queue {
    /// The device, up, and whether it has a vnet header and offloads.
    pub(super) fn open(config: &config::Capture) -> anyhow::Result<(Self, bool)> {
        if config.offload {
            let queue = Self::create(config, true)?;
            match queue.set_offload() {
                Ok(()) => return Ok((queue, true)),
                Err(error) => tracing::debug!(target: "mesh_agent::tun", %error, "TUNSETOFFLOAD"),
            }
        }
        Ok((Self::create(config, false)?, false))
    }

    fn create(config: &config::Capture, vnet: bool) -> anyhow::Result<Self> {
        let mut request = tun::Configuration::default();
        request.tun_name(&config.tun).address(config.address4).netmask((255, 255, 255, 255)).mtu(config.mtu).up();
        request.platform_config(|platform| {
            platform.vnet_hdr(vnet);
        });
        let device = tun::create(&request).map_err(|error| explain(&error, config))?;
        device.set_nonblock().context("making the TUN device non-blocking")?;
        tracing::debug!(target: "mesh_agent::tun", name = device.tun_name().unwrap_or_default(), vnet, "device opened");
        Ok(Self { device })
    }

    /// Registers with the runtime's reactor.
    pub(super) fn register(self) -> io::Result<AsyncFd<Self>> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: the descriptor is owned by the device, which `self` owns and never replaces or closes.
        unsafe { AsyncFd::register_with_interest(self, interest) }.map_err(|error| io::Error::other(error.to_string()))
    }

    fn set_offload(&self) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is open as long as `self`.
        let result = unsafe { libc::ioctl(self.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `len` bytes into the buffer, which we hold exclusively.
        let read = unsafe { libc::read(self.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    pub(super) fn write(&self, packet: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads at most `len` bytes from the slice.
        let written = unsafe { libc::write(self.as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

fn explain(error: &tun::Error, config: &config::Capture) -> anyhow::Error {
    let hint = if !std::path::Path::new("/dev/net/tun").exists() {
        "/dev/net/tun does not exist: load the tun module (modprobe tun), or pass the device into the container"
    } else {
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EBUSY) => "a device of this name is in use: another mesh-agent runs, or set capture.tun",
            Some(libc::EPERM | libc::EACCES) => {
                "permission denied: the agent needs CAP_NET_ADMIN and read-write access to /dev/net/tun (mode 0666)"
            }
            _ => "see `mesh-agent config show` for the capture section",
        }
    };
    anyhow!("cannot create the TUN device {}: {error}; {hint}", config.tun)
}

/// `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
