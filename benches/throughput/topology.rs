//! The machines: a control plane, A (client) and B (server) on one switch, A and B members of one mesh.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{Host, Lan, Proc, wait_until};

use crate::measure::{ECHO, Measure, SINK, SOURCE, Sample};

/// The address of B that the mesh knows nothing of, on the same device.
const PLAIN: &str = "10.78.0.2";
/// The address of the service, whose only endpoint is B.
const SERVICE: &str = "240.240.77.77";
const READY: Duration = Duration::from_secs(60);

/// Which way the client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// From kernel to kernel.
    Plain,
    /// Through both agents.
    Mesh,
}

/// Everything that runs. Processes and machines go when it is dropped.
pub(crate) struct Topology {
    _processes: Vec<Proc>,
    a: Host,
    _b: Host,
    _control: Host,
    _lan: Lan,
}

impl Topology {
    /// Starts all, and returns when A reaches B both ways.
    pub(crate) fn start() -> Result<Self> {
        let lan = Lan::new();
        let (control, a, b) = (lan.host("control"), lan.host("a"), lan.host("b"));
        let (control4, _) = Lan::addresses(1);
        for (host, plain) in [(&a, "10.78.0.1"), (&b, PLAIN)] {
            host.ip(&format!("addr add {plain}/24 dev eth0"));
            tune(host);
        }
        let mut processes = vec![start_control(&control, control4.into())?];
        for (host, group) in [(&a, "client"), (&b, "server")] {
            processes.push(join(&control, host, group)?);
        }
        let itself = std::env::current_exe()?;
        processes.push(b.spawn(b.command(&itself).args(["serve", "0.0.0.0"]).stdout(Stdio::null())));
        let topology = Self {
            _processes: processes,
            a,
            _b: b,
            _control: control,
            _lan: lan,
        };
        for side in [Side::Plain, Side::Mesh] {
            wait_until(READY, &format!("the {side:?} way from A to B"), || {
                topology.reaches(side)
            });
        }
        Ok(topology)
    }

    /// One run of a measure, in a process of its own on A.
    pub(crate) fn load(&self, measure: &Measure, side: Side, seconds: f64) -> Result<Sample> {
        let address = SocketAddr::new(side.address(), measure.port());
        let output = self
            .a
            .command(std::env::current_exe()?)
            .args(["load", measure.name, &address.to_string(), &seconds.to_string()])
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "{} over {side:?} failed", measure.name);
        serde_json::from_slice(&output.stdout).context("the client's figures")
    }

    fn reaches(&self, side: Side) -> bool {
        let address = SocketAddr::new(side.address(), ECHO);
        self.a
            .enter(|| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
    }
}

impl Side {
    fn address(self) -> IpAddr {
        let text = match self {
            Self::Plain => PLAIN,
            Self::Mesh => SERVICE,
        };
        text.parse().expect("a constant address")
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

fn start_control(control: &Host, address: IpAddr) -> Result<Proc> {
    let directory = control.directory();
    let file = directory.join("control.toml");
    std::fs::write(
        &file,
        format!(
            "data_dir = \"{0}/data\"\nrun_dir = \"{0}/run\"\nlisten = \"0.0.0.0:15012\"\naddresses = [\"{address}:15012\"]\n",
            directory.display()
        ),
    )?;
    let mut command = control.command(program("mesh-control")?);
    let process = control.spawn(log_to(command.arg("serve").arg("--config").arg(&file), directory)?);
    wait_until(READY, "mesh-control", || meshctl(control, &["ca", "status"]).is_ok());
    let resources = directory.join("bench.yaml");
    std::fs::write(&resources, resources_yaml())?;
    meshctl(control, &["apply", "-f", &resources.to_string_lossy()])?;
    Ok(process)
}

fn join(control: &Host, host: &Host, group: &str) -> Result<Proc> {
    let directory = host.directory();
    let token = directory.join("token");
    std::fs::write(
        &token,
        meshctl(control, &["token", "create", "--group", &format!("bench/{group}")])?,
    )?;
    let file = directory.join("agent.toml");
    std::fs::write(
        &file,
        format!(
            "[paths]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\n[admin]\ngroup = \"root\"\n[log]\nlevel = \"warn\"\n",
            directory.display()
        ),
    )?;
    let agent = env!("CARGO_BIN_EXE_mesh-agent");
    let mut join = host.command(agent);
    let joined = join
        .arg("join")
        .arg("--config")
        .arg(&file)
        .arg("--token-file")
        .arg(&token)
        .output()?;
    ensure!(
        joined.status.success(),
        "join of {group}: {}",
        String::from_utf8_lossy(&joined.stderr)
    );
    let mut run = host.command(agent);
    Ok(host.spawn(log_to(run.arg("run").arg("--config").arg(&file), directory)?))
}

fn meshctl(control: &Host, arguments: &[&str]) -> Result<String> {
    let socket = format!("unix://{}/run/control.sock", control.directory().display());
    let output = control
        .command(program("meshctl")?)
        .args(["--server", &socket])
        .args(arguments)
        .output()?;
    ensure!(
        output.status.success(),
        "meshctl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A program of the workspace's other package, which cargo does not name for us: it is beside the agent.
fn program(name: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_BIN_EXE_mesh-agent")).with_file_name(name);
    ensure!(
        path.exists(),
        "no {}: run `cargo build --workspace --bins --release` first",
        path.display()
    );
    Ok(path)
}

fn log_to<'a>(command: &'a mut Command, directory: &Path) -> Result<&'a mut Command> {
    let log = std::fs::File::create(directory.join("log"))?;
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}

fn resources_yaml() -> String {
    let group = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: {name}, namespace: bench}}\n\
             spec:\n  metadata: {{labels: {{app: {name}}}}}\n  template: {{serviceAccount: {name}}}\n---\n"
        )
    };
    let ports: String = [SINK, SOURCE, ECHO]
        .iter()
        .map(|port| format!("    - {{number: {port}, name: tcp-{port}, protocol: TCP}}\n"))
        .collect();
    format!(
        "{}{}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: server, namespace: bench}}\nspec:\n  \
         hosts: [server.bench.mesh.internal]\n  addresses: [\"{SERVICE}\"]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports:\n{ports}  workloadSelector: {{labels: {{app: server}}}}\n",
        group("client"),
        group("server"),
    )
}
