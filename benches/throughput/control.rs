//! The control plane of all sides: mesh-control, and what is applied to it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use mesh_lab::{Host, Proc, wait_until};

use crate::measure::{ECHO, SINK, SOURCE};
use crate::side::Side;
use crate::topology::READY;

/// A running mesh-control.
pub(crate) struct Control {
    pub(crate) host: Host,
    _process: Proc,
}

impl Control {
    /// Starts it on `host`, for these sides.
    pub(crate) fn start(host: Host, address: IpAddr, sides: &[Side]) -> Result<Self> {
        let directory = host.directory().to_owned();
        let file = directory.join("control.toml");
        std::fs::write(
            &file,
            format!(
                "data_dir = \"{0}/data\"\nrun_dir = \"{0}/run\"\nlisten = \"0.0.0.0:15012\"\naddresses = [\"{address}:15012\"]\n",
                directory.display()
            ),
        )?;
        let mut command = host.command(program("mesh-control")?);
        let process = host.spawn(log_to(command.arg("serve").arg("--config").arg(&file), &directory)?);
        let control = Self {
            host,
            _process: process,
        };
        wait_until(READY, "mesh-control", || control.meshctl(&["ca", "status"]).is_ok());
        let resources = directory.join("bench.yaml");
        std::fs::write(
            &resources,
            sides.iter().map(|side| resources_of(*side)).collect::<String>(),
        )?;
        control.meshctl(&["apply", "-f", &resources.to_string_lossy()])?;
        Ok(control)
    }

    /// What meshctl prints.
    pub(crate) fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        let socket = format!("unix://{}/run/control.sock", self.host.directory().display());
        let output = self
            .host
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

    /// Writes a join token of `group` to a file on `host`.
    pub(crate) fn token(&self, host: &Host, group: &str) -> Result<PathBuf> {
        let file = host.directory().join("token");
        let token = self.meshctl(&[
            "token",
            "create",
            "--lifetime",
            "1d",
            "--group",
            &format!("bench/{group}"),
        ])?;
        std::fs::write(&file, token.trim())?;
        Ok(file)
    }
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

/// Keeps what a process prints in its machine's directory.
pub(crate) fn log_to<'a>(command: &'a mut Command, directory: &Path) -> Result<&'a mut Command> {
    let log = std::fs::File::create(directory.join("log"))?;
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
}

/// A group for its client, one for its server, and a service of the latter.
fn resources_of(side: Side) -> String {
    let (name, service) = (side.name(), side.service());
    let group = |role: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: {role}-{name}, namespace: bench}}\n\
             spec:\n  metadata: {{labels: {{app: {role}-{name}}}}}\n  template: {{serviceAccount: {role}-{name}}}\n---\n"
        )
    };
    let ports: String = [SINK, SOURCE, ECHO]
        .iter()
        .map(|port| format!("    - {{number: {port}, name: tcp-{port}, protocol: TCP}}\n"))
        .collect();
    format!(
        "{}{}apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n  \
         hosts: [{name}.bench.mesh.internal]\n  addresses: [\"{service}\"]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
         ports:\n{ports}  workloadSelector: {{labels: {{app: server-{name}}}}}\n---\n",
        group("client"),
        group("server"),
    )
}
