//! What carries a side's flows on one of its machines: an agent of ours, or a ztunnel.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use mesh_lab::{Host, Proc};

use crate::control::{Control, log_to};
use crate::side::{Side, ztunnel};

/// Starts it on `host`, at `address`, as a member of `group`.
pub(crate) fn start(control: &Control, side: Side, host: &Host, address: &str, group: &str) -> Result<Option<Proc>> {
    let token = control.token(host, group)?;
    match side {
        Side::Plain => Ok(None),
        Side::Hbone3 => agent(host, &token, "").map(Some),
        Side::Hbone => agent(host, &token, "[tunnel]\ntransport = \"tcp\"\n").map(Some),
        Side::Ztunnel => start_ztunnel(control, host, &token, address, group).map(Some),
    }
}

fn agent(host: &Host, token: &Path, more: &str) -> Result<Proc> {
    let directory = host.directory();
    let file = directory.join("agent.toml");
    std::fs::write(
        &file,
        format!(
            "[paths]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\n[admin]\ngroup = \"root\"\n[log]\nlevel = \"warn\"\n{more}",
            directory.display()
        ),
    )?;
    let agent = env!("CARGO_BIN_EXE_mesh-agent");
    let mut join = host.command(agent);
    join.arg("join")
        .arg("--config")
        .arg(&file)
        .arg("--token-file")
        .arg(token);
    let joined = join.output()?;
    ensure!(
        joined.status.success(),
        "join of {}: {}",
        host.name(),
        String::from_utf8_lossy(&joined.stderr)
    );
    let mut run = host.command(agent);
    Ok(host.spawn(log_to(run.arg("run").arg("--config").arg(&file), directory)?))
}

/// As it runs for one workload, with the redirection that Istio's CNI would set up for it. It logs what our agents log.
fn start_ztunnel(control: &Control, host: &Host, token: &Path, address: &str, group: &str) -> Result<Proc> {
    let directory = host.directory();
    let root = directory.join("root-cert.pem");
    std::fs::write(&root, control.meshctl(&["ca", "root"])?)?;
    let (root, name, mark) = (
        root.display().to_string(),
        format!("{group}-{address}"),
        MARK.to_string(),
    );
    let mut command = host.command(ztunnel().context("ZTUNNEL names no binary")?);
    command.env_clear().envs([
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", &format!("bench/{name}/{group}")),
        ("CA_ADDRESS", CONTROL),
        ("XDS_ADDRESS", CONTROL),
        ("CA_ROOT_CA", &root),
        ("XDS_ROOT_CA", &root),
        ("AUTH_TOKEN", &token.display().to_string()),
        ("ISTIO_META_AUTO_REGISTER_GROUP", group),
        ("ISTIO_META_DNS_CAPTURE", "false"),
        ("POD_NAME", &name),
        ("POD_NAMESPACE", "bench"),
        ("INSTANCE_IP", address),
        ("PACKET_MARK", &mark),
        ("ENABLE_ORIG_SRC", "false"),
        ("IPV6_ENABLED", "false"),
        ("RUST_LOG", "warn"),
    ]);
    // It does not start without a name server, though it asks none here.
    std::fs::write(host.resolv_conf(), "nameserver 192.0.2.53\n")?;
    let process = host.spawn(log_to(&mut command, directory)?);
    // What is redirected must have a way first.
    host.ip("route add 240.240.77.0/24 dev eth0");
    host.nft(&format!(
        "table inet ztunnel {{\n\
         chain output {{ type nat hook output priority -100;\n\
         tcp dport != 15012 ip daddr 240.240.77.0/24 meta mark != {MARK} redirect to :15001; }}\n}}"
    ));
    Ok(process)
}

const CONTROL: &str = "https://10.77.0.1:15012";
/// What ztunnel marks its own packets with.
const MARK: u32 = 1337;
