//! Test machines: each host is an anonymous network namespace with a mount namespace of its own, so that nothing has a name
//! outside of this process, tests may run in parallel, and nothing is left when one panics or is killed. Needs root.
#![allow(dead_code, unreachable_pub, unsafe_code, clippy::unwrap_used, clippy::print_stderr)]

pub mod services;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything that should happen may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until a condition holds, looking again every few milliseconds; panics with `what` when it takes too long.
pub fn wait_for(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// One machine.
pub struct Host {
    pub name: String,
    network: File,
    /// Becomes /etc on this machine, over the real one.
    etc: tempfile::TempDir,
}

impl Host {
    pub fn new(name: &str) -> Self {
        let network = std::thread::spawn(|| {
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            File::open("/proc/thread-self/ns/net")
        });
        let network = network.join().unwrap().expect("unshare(CLONE_NEWNET): the namespace tests need root");
        let etc = tempfile::tempdir().unwrap();
        for file in ["passwd", "group", "nsswitch.conf", "hosts"] {
            let text = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
            std::fs::write(etc.path().join(file), text).unwrap();
        }
        std::fs::write(etc.path().join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n").unwrap();
        std::fs::write(etc.path().join("resolv.conf"), "").unwrap();
        let host = Self { name: name.into(), network, etc };
        host.ip("link set lo up");
        // Routes and filters as a hardened machine has them.
        host.sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/default/rp_filter");
        host
    }

    /// A path by which `ip ... netns PATH` finds this host.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }

    /// A command that will run on this host, and is killed with this process.
    pub fn cmd(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let (network, parent) = (self.network.as_raw_fd(), unsafe { libc::getpid() });
        let files = ["passwd", "group", "nsswitch.conf", "hosts", "resolv.conf"];
        let binds: Vec<_> = files
            .iter()
            .filter(|file| Path::new("/etc").join(file).exists())
            .map(|file| (c_path(&self.etc.path().join(file)), c_path(&Path::new("/etc").join(file))))
            .collect();
        let mut command = Command::new(program);
        // SAFETY (of the test): only async-signal-safe calls, on memory made before the fork.
        unsafe {
            command.pre_exec(move || {
                check(libc::setns(network, libc::CLONE_NEWNET))?;
                check(libc::unshare(libc::CLONE_NEWNS))?;
                let none = std::ptr::null();
                check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
                for (from, to) in &binds {
                    check(libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()))?;
                }
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                if libc::getppid() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Ok(())
            });
        }
        command
    }

    pub fn spawn(&self, command: &mut Command) -> Proc {
        // A process dies with the thread that made it (PDEATHSIG), so that one which lives as long as the test makes them.
        Proc(command.spawn().unwrap_or_else(|error| panic!("{}: {command:?}: {error}", self.name)))
    }

    /// Runs a shell line here; panics when it fails; returns what it printed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.cmd("/bin/sh").arg("-ec").arg(line).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {line}: {said}", self.name);
        String::from_utf8_lossy(&output.stdout).into()
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.sh(&format!("ip {arguments}"))
    }

    pub fn nft(&self, rules: &str) {
        self.sh(&format!("nft -f - <<'EOF'\n{rules}\nEOF"));
    }

    /// Runs a closure on a thread that is on this host: its sockets are here.
    pub fn enter<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let network = self.network.as_raw_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                check(unsafe { libc::setns(network, libc::CLONE_NEWNET) }).unwrap();
                run()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A cable to another host.
    pub fn cable(&self, device: &str, address: &str, other: &Self, other_device: &str, other_address: &str) {
        self.ip(&format!("link add dev {device} type veth peer name {other_device} netns {}", other.path()));
        for (host, device, address) in [(self, device, address), (other, other_device, other_address)] {
            host.ip(&format!("addr add {address} dev {device}"));
            host.ip(&format!("link set dev {device} up"));
        }
        self.wait_up(device);
        other.wait_up(other_device);
    }

    /// Until the kernel has seen the carrier: before, it silently drops what is sent.
    pub fn wait_up(&self, device: &str) {
        wait_for(SOON, device, || !self.ip(&format!("-o link show dev {device}")).contains("state DOWN"));
    }

    pub fn write_resolv_conf(&self, text: &str) {
        std::fs::write(self.etc.path().join("resolv.conf"), text).unwrap();
    }

    /// Adds a user to this machine's passwd and group.
    pub fn with_user(&self, name: &str, id: u32) {
        let line = |file: &str, text: String| {
            let path = self.etc.path().join(file);
            std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + &text).unwrap();
        };
        line("passwd", format!("{name}:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n"));
        line("group", format!("{name}:x:{id}:\n"));
    }

    /// The first IPv4 address of a name, by the machine's resolver.
    pub fn resolve(&self, name: &str) -> String {
        let mut address = String::new();
        wait_for(SOON, &format!("{name} to resolve"), || {
            let output = self.cmd("getent").args(["ahostsv4", name]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            address = text.split_whitespace().next().unwrap_or_default().to_owned();
            !address.is_empty()
        });
        address
    }

    /// Rules, routes, tables, links and addresses: what an agent could leave behind.
    pub fn kernel_state(&self) -> String {
        self.sh("ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | sed 's/expires [0-9]*sec//'; ip -o link | cut -d: -f2; nft list ruleset")
    }
}

/// A process on a host; killed when dropped.
pub struct Proc(pub Child);

impl Proc {
    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    pub fn signal(&self, signal: libc::c_int) {
        unsafe { libc::kill(self.0.id() as libc::pid_t, signal) };
    }

    pub fn exited(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hosts on a bridge: 10.77.0.N/24 and fd77::N/64, with a default route, as machines on a LAN have.
pub struct Lan {
    bridge: Host,
}

impl Default for Lan {
    fn default() -> Self {
        let bridge = Host::new("lan");
        bridge.ip("link add br0 type bridge");
        bridge.ip("addr add 10.77.0.254/24 dev br0");
        bridge.ip("link set br0 up");
        Self { bridge }
    }
}

impl Lan {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn host(&self, name: &str, number: u8) -> Host {
        let host = Host::new(name);
        let port = format!("port{number}");
        self.bridge.ip(&format!("link add dev {port} type veth peer name eth0 netns {}", host.path()));
        self.bridge.ip(&format!("link set dev {port} master br0 up"));
        host.ip(&format!("addr add 10.77.0.{number}/24 dev eth0"));
        host.ip(&format!("addr add fd77::{number:x}/64 dev eth0 nodad"));
        host.ip("link set dev eth0 up");
        host.wait_up("eth0");
        host.ip("route add default via 10.77.0.254");
        self.bridge.wait_up(&port);
        host
    }

    /// Everything that crosses the bridge, until [`Capture::stop`].
    pub fn capture(&self, filter: &str) -> Capture {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wire.pcap");
        let mut command = self.bridge.cmd("tcpdump");
        command.args(["-i", "br0", "-U", "-s", "0", "-Z", "root", "-w"]).arg(&file);
        if !filter.is_empty() {
            command.arg(filter);
        }
        command.stderr(Stdio::null()).stdout(Stdio::null());
        let process = self.bridge.spawn(&mut command);
        wait_for(SOON, "tcpdump", || std::fs::metadata(&file).is_ok_and(|meta| meta.len() >= 24));
        Capture { process, file, _dir: dir }
    }
}

/// A running tcpdump.
pub struct Capture {
    process: Proc,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Capture {
    /// What was seen, as bytes.
    pub fn stop(mut self) -> Wire {
        self.process.signal(libc::SIGINT);
        wait_for(SOON, "tcpdump to end", || self.process.exited());
        Wire(std::fs::read(&self.file).unwrap())
    }
}

/// Bytes seen on a wire.
pub struct Wire(Vec<u8>);

impl Wire {
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.0.windows(needle.len()).any(|window| window == needle)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The library that changes what a program takes for the time.
pub fn faketime() -> PathBuf {
    let found = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|dir| Path::new(dir).join("faketime/libfaketime.so.1"))
        .find(|path| path.exists());
    found.expect("libfaketime: install the package faketime")
}

fn c_path(path: &Path) -> std::ffi::CString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
