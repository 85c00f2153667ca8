//! The machines: a control plane, and for each way a client A and a server B, all on one switch.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lan, Proc, wait_until};

use crate::control::Control;
use crate::measure::{ECHO, Measure, Sample};
use crate::proxies;
use crate::side::Side;

/// How long a machine may take to be ready.
pub(crate) const READY: Duration = Duration::from_secs(60);

/// Everything that runs. Processes and machines go when it is dropped.
pub(crate) struct Topology {
    pairs: Vec<Pair>,
    _control: Control,
    _lan: Lan,
}

/// One way, and its machines.
struct Pair {
    side: Side,
    address: IpAddr,
    _processes: Vec<Proc>,
    a: Host,
    _b: Host,
}

impl Topology {
    /// Starts all, and returns when every A reaches its B.
    pub(crate) fn start() -> Result<Self> {
        let lan = Lan::new();
        let sides = Side::all();
        let control = lan.host("control");
        let control = Control::start(control, Lan::addresses(1).0.into(), &sides)?;
        let pairs = sides.into_iter().map(|side| Pair::start(&lan, &control, side));
        let topology = Self {
            pairs: pairs.collect::<Result<_>>()?,
            _control: control,
            _lan: lan,
        };
        for pair in &topology.pairs {
            wait_until(READY, &format!("the {} way from A to B", pair.side.name()), || {
                pair.reaches()
            });
        }
        Ok(topology)
    }

    /// All ways, in the table's order.
    pub(crate) fn sides(&self) -> Vec<Side> {
        self.pairs.iter().map(|pair| pair.side).collect()
    }

    /// One run of a measure, in a process of its own on A.
    pub(crate) fn load(&self, measure: &Measure, side: Side, seconds: f64) -> Result<Sample> {
        let pair = self
            .pairs
            .iter()
            .find(|pair| pair.side == side)
            .context("no such way")?;
        let address = SocketAddr::new(pair.address, measure.port());
        let output = pair
            .a
            .command(std::env::current_exe()?)
            .args(["load", measure.name, &address.to_string(), &seconds.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "{} over {} failed", measure.name, side.name());
        serde_json::from_slice(&output.stdout).context("the client's figures")
    }
}

impl Pair {
    fn start(lan: &Lan, control: &Control, side: Side) -> Result<Self> {
        let name = side.name();
        let mut processes = Vec::new();
        let mut machine = |role: &str| -> Result<(Host, IpAddr)> {
            let host = Host::new(&format!("{role}-{name}"));
            let (address, _) = lan.attach(&host);
            tune(&host);
            let group = format!("{role}-{name}");
            processes.extend(proxies::start(control, side, &host, &address.to_string(), &group)?);
            Ok((host, address.into()))
        };
        let ((a, _), (b, direct)) = (machine("client")?, machine("server")?);
        let itself = std::env::current_exe()?;
        processes.push(b.spawn(b.command(&itself).args(["serve", "0.0.0.0"]).stdout(Stdio::null())));
        let address = match side {
            Side::Plain => direct,
            _ => side.service().parse()?,
        };
        Ok(Self {
            side,
            address,
            _processes: processes,
            a,
            _b: b,
        })
    }

    /// Whether a message comes back: a proxy may take a connection that leads nowhere.
    fn reaches(&self) -> bool {
        let address = SocketAddr::new(self.address, ECHO);
        self.a.enter(|| crate::client::answers(address))
    }
}

/// A loss-based congestion control for all, whatever the machine's default (some kernels do not let a namespace choose
/// cubic; without loss reno is no different); and ports that can be used again, or a connection
/// rate would measure the search for a free port.
fn tune(host: &Host) {
    let file = "/proc/sys/net/ipv4/tcp_congestion_control";
    host.sh(&format!("echo cubic > {file} 2>/dev/null || echo reno > {file}"));
    host.sh("echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse");
    host.sh("echo 1024 65000 > /proc/sys/net/ipv4/ip_local_port_range");
}
