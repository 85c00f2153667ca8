//! The system calls under a host: making namespaces, entering them, and mounts of its own.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// One network and one mount namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    net: File,
    mount: File,
}

impl Namespace {
    /// New namespaces; `prepare` runs inside, before anything else does.
    pub(crate) fn new(prepare: impl FnOnce() -> io::Result<()> + Send) -> io::Result<Self> {
        on_a_thread(|| {
            // SAFETY: no memory is passed; it changes this thread only.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) })?;
            // Mounts made here must not show outside.
            mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE)?;
            prepare()?;
            Ok(Self {
                net: File::open("/proc/thread-self/ns/net")?,
                mount: File::open("/proc/thread-self/ns/mnt")?,
            })
        })
    }

    /// The network namespace's descriptor.
    pub(crate) fn net(&self) -> i32 {
        self.net.as_raw_fd()
    }

    /// Runs `work` on a thread that is inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let (net, mount) = (self.net.as_raw_fd(), self.mount.as_raw_fd());
        on_a_thread(move || {
            enter(net, mount).expect("entering the namespaces of a host");
            work()
        })
    }

    /// Makes the command run inside, and die with the thread that starts it.
    pub(crate) fn put(&self, command: &mut Command) {
        let (net, mount) = (self.net.as_raw_fd(), self.mount.as_raw_fd());
        let parent = std::process::id();
        // SAFETY: between fork and exec only async-signal-safe system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                enter(net, mount)?;
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                if libc::getppid().unsigned_abs() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Ok(())
            });
        }
    }
}

/// Mounts a file system of `kind`; with an empty kind and `MS_BIND`, `source` is bound to `target`.
pub(crate) fn mount(source: &str, target: &Path, kind: &str, flags: libc::c_ulong) -> io::Result<()> {
    let text = |text: &str| CString::new(text).map_err(io::Error::other);
    let (source, target, kind) = (text(source)?, text(&target.to_string_lossy())?, text(kind)?);
    // SAFETY: the three strings are nul-terminated and outlive the call; no data is passed.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })
}

/// Sends a signal to a process of ours.
pub(crate) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid.cast_signed(), signal) })
}

fn enter(net: i32, mount: i32) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptors are open as long as the namespace is. A mount namespace can be
    // entered only by a thread that shares its working directory with no other.
    unsafe {
        check(libc::unshare(libc::CLONE_FS))?;
        check(libc::setns(net, libc::CLONE_NEWNET))?;
        check(libc::setns(mount, libc::CLONE_NEWNS))
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
