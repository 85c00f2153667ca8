//! One machine, and the processes on it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;

use crate::namespace::{Namespace, mount, signal};
use crate::wait_until;

/// One machine: its own network, its own `/run` and `/etc/resolv.conf`, and a directory for state.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: Namespace,
    directory: TempDir,
}

impl Host {
    /// A machine with nothing but loopback. Its resolv.conf is empty.
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for a host");
        let resolv = directory.path().join("resolv.conf");
        std::fs::write(&resolv, "").expect("writing resolv.conf");
        let namespace = Namespace::new(|| own_mounts(&resolv))
            .expect("unshare(CLONE_NEWNET | CLONE_NEWNS): run as root or under `unshare -Urnm`");
        let host = Self {
            name: name.into(),
            namespace,
            directory,
        };
        host.ip("link set lo up");
        host
    }

    /// What the test calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory of its own, removed with it; the same path inside and outside.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The file that is `/etc/resolv.conf` on this machine.
    pub fn resolv_conf(&self) -> PathBuf {
        self.directory.path().join("resolv.conf")
    }

    /// A path by which `ip ... netns PATH` finds this machine.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.net())
    }

    /// A command that will run here. It is killed when the thread that starts it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.namespace.put(&mut command);
        command
    }

    /// Starts a command made by [`Self::command`].
    pub fn spawn(&self, command: &mut Command) -> Proc {
        Proc(
            command
                .spawn()
                .unwrap_or_else(|error| panic!("{}: {command:?}: {error}", self.name)),
        )
    }

    /// Runs a shell line; gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, line: &str) -> String {
        self.try_sh(line)
            .unwrap_or_else(|error| panic!("{}: {line}: {error}", self.name))
    }

    /// Runs a shell line; gives what it printed, or what it complained about.
    pub fn try_sh(&self, line: &str) -> Result<String, String> {
        let output = self
            .command("/bin/sh")
            .arg("-ec")
            .arg(line)
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!(
                "{}: {}{}",
                output.status,
                text(&output.stderr),
                text(&output.stdout)
            ))
        }
    }

    /// `ip ARGUMENTS`.
    pub fn ip(&self, arguments: &str) -> String {
        self.sh(&format!("ip {arguments}"))
    }

    /// Loads an nftables script.
    pub fn nft(&self, script: &str) {
        self.sh(&format!("nft -f - <<'EOF'\n{script}\nEOF"));
    }

    /// Runs a closure on a thread of its own that is on this machine: its sockets and files are here.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.enter(work)
    }

    /// Until the kernel has seen the carrier of `device`; before, it silently drops what is sent.
    pub fn wait_up(&self, device: &str) {
        wait_until(Duration::from_secs(5), &format!("{}: {device} up", self.name), || {
            !self.ip(&format!("-o link show dev {device}")).contains("state DOWN")
        });
    }

    /// Drops this many of 100 packets that arrive on `device`; 0 ends it.
    pub fn loss(&self, device: &str, percent: u32) {
        self.nft(&format!(
            "table netdev loss_{device} {{}}\ndelete table netdev loss_{device}"
        ));
        if percent > 0 {
            self.nft(&format!(
                "table netdev loss_{device} {{ chain c {{ type filter hook ingress device \"{device}\" priority 0; \
                 meta protocol {{ ip, ip6 }} numgen random mod 100 < {percent} drop; }}; }}"
            ));
        }
    }
}

/// A process; killed when dropped.
#[derive(Debug)]
pub struct Proc(pub Child);

impl Proc {
    /// Sends a signal.
    pub fn signal(&self, number: i32) {
        signal(self.0.id(), number).expect("signalling a process");
    }

    /// SIGTERM, then waits until it is gone.
    pub fn stop(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait(deadline)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(10));
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        crate::wait_for(deadline, "the end of a process", || {
            self.0.try_wait().expect("waiting for a process")
        })
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An own `/run`, an own `/etc/resolv.conf`, and a `/sys` that shows this machine's devices.
fn own_mounts(resolv: &Path) -> io::Result<()> {
    mount("tmpfs", Path::new("/run"), "tmpfs", 0)?;
    let etc = Path::new("/etc/resolv.conf");
    // A link often leads into /run, which has just become empty.
    let target = match std::fs::read_link(etc) {
        Ok(link) => Path::new("/etc").join(link),
        Err(_) => etc.to_owned(),
    };
    if !target.exists() {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&target, "")?;
    }
    mount(&resolv.to_string_lossy(), &target, "", libc::MS_BIND)?;
    // Refused in some containers; only programs that look into /sys/class/net notice.
    let _ = mount("sysfs", Path::new("/sys"), "sysfs", 0);
    Ok(())
}
