//! Opens the device, and asks the kernel for offloads: the calls that need `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tun::AbstractDevice;

use super::{Tun, TunError};

/// linux/if_tun.h.
const TUN_F_CSUM: u64 = 0x01;
const TUN_F_TSO4: u64 = 0x02;
const TUN_F_TSO6: u64 = 0x04;

nix::ioctl_write_int!(
    /// TUNSETOFFLOAD of linux/if_tun.h: which unfinished packets user space takes.
    tun_set_offload,
    b'T',
    208
);

/// Why the device was not opened as wanted.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The kernel gives no vnet header or takes no offload; without them it may work.
    OffloadRefused(io::Error),
    Tun(TunError),
}

/// A non-blocking descriptor of the device's only queue.
pub(super) fn open(name: &str, mtu: u16, offload: bool) -> Result<File, OpenError> {
    let mut config = tun::Configuration::default();
    config.tun_name(name).layer(tun::Layer::L3).platform_config(|linux| {
        // Addresses come by netlink, where IPv6 and its flags can be said; so the crate shall configure nothing.
        linux.ensure_root_privileges(false).vnet_hdr(offload);
    });
    let mut device = tun::create(&config).map_err(|error| explain(name, error, offload))?;
    device.set_mtu(mtu).map_err(|error| explain(name, error, false))?;
    device
        .set_nonblock()
        .map_err(|error| explain(name, error.into(), false))?;
    // SAFETY: the descriptor is open as long as `device`, which outlives this borrow.
    let borrowed = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    let file = File::from(
        borrowed
            .try_clone_to_owned()
            .map_err(|error| explain(name, error.into(), false))?,
    );
    if offload {
        let wanted = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
        // SAFETY: the descriptor is open, and the argument is a number, not a pointer.
        unsafe { tun_set_offload(file.as_raw_fd(), wanted) }
            .map_err(|errno| OpenError::OffloadRefused(errno.into()))?;
    }
    Ok(file)
}

/// Registers the device with the runtime of this thread.
pub(super) fn register(tun: Tun) -> io::Result<AsyncFd<Tun>> {
    // SAFETY: `Tun` owns its descriptor, gives always the same one, never gives it away, and closes it only when dropped.
    let registered = unsafe { AsyncFd::register(tun) };
    registered.map_err(|error| error.into_parts().1)
}

fn explain(name: &str, error: tun::Error, offload: bool) -> OpenError {
    let tun::Error::Io(error) = error else {
        return OpenError::Tun(match error {
            tun::Error::NameTooLong | tun::Error::InvalidName => TunError::Name(name.into()),
            error => TunError::Other {
                name: name.into(),
                error: error.to_string(),
            },
        });
    };
    OpenError::Tun(match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINVAL) if offload => return OpenError::OffloadRefused(error),
        Some(Errno::EINVAL) => TunError::Name(name.into()),
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => TunError::NoDevice,
        Some(Errno::EACCES) => TunError::NotAllowed,
        Some(Errno::EPERM) => TunError::NotPermitted(name.into()),
        Some(Errno::EBUSY) => TunError::Busy(name.into()),
        _ => TunError::Other {
            name: name.into(),
            error: error.to_string(),
        },
    })
}
