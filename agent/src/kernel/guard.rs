//! Our nftables table: it marks and drops, and never redirects. Applied whole, as one transaction.

use std::fmt::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use mesh_core::policy::plaintext::PlaintextRule;
use tokio::io::AsyncWriteExt as _;

use crate::config::Config;

/// Name of the table, family `inet`.
pub(super) const TABLE: &str = "mesh_agent";

/// The table's text. Pure, so that it can be looked at in tests.
pub(super) fn table(config: &Config, plaintext: &[PlaintextRule]) -> String {
    let capture = &config.capture;
    let (mark, tun) = (capture.mark, &capture.tun);
    let (own4, own6) = (capture.address4, capture.address6);
    let (dns4, dns6) = (config.dns.resolver4, config.dns.resolver6);
    let bridges = capture.forward_interfaces.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let forwarded = if bridges.is_empty() {
        String::new()
    } else {
        format!(
            "\tchain prerouting {{\n\t\ttype filter hook prerouting priority mangle; policy accept;\n\t\tiifname {{ {bridges} }} meta l4proto != tcp meta mark set {mark}\n\t}}\n"
        )
    };
    let judged = plaintext.iter().map(rule).collect::<String>();
    format!(
        r#"table inet {TABLE} {{}}
delete table inet {TABLE}
table inet {TABLE} {{
	# A reply belongs to the connection that it answers: it never enters the TUN. Connections that are older than this
	# table are left alone, too: their first packet that is seen is no SYN.
	chain output {{
		type route hook output priority mangle; policy accept;
		ct mark 0 ct state new meta l4proto tcp tcp flags & (syn | ack | rst) != syn ct mark set {mark}
		ct mark {mark} meta mark set {mark} accept
		ct direction reply meta mark set {mark}
	}}
	# Nobody outside of this machine speaks to the TUN's addresses (CVE-2019-14899).
	chain input {{
		type filter hook input priority filter - 10; policy accept;
		iifname {{ "lo", "{tun}" }} accept
		ip daddr {{ {own4}, {dns4} }} counter drop
		ip6 daddr {{ {own6}, {dns6} }} counter drop
		ct direction original jump plaintext
	}}
	# What policies say of those who show no identity. First hit decides.
	chain plaintext {{
{judged}	}}
{forwarded}}}
"#
    )
}

fn rule(rule: &PlaintextRule) -> String {
    let family = if rule.source.addr().is_ipv4() { "ip" } else { "ip6" };
    let mut text = format!("\t\tmeta l4proto {{ tcp, udp }} th dport {} {family} saddr {} ", rule.port, rule.source);
    if rule.source.prefix_len() == 0 {
        let version = if rule.source.addr().is_ipv4() { "ipv4" } else { "ipv6" };
        text = format!("\t\tmeta nfproto {version} meta l4proto {{ tcp, udp }} th dport {} ", rule.port);
    }
    let _ = match &rule.denied_by {
        None => writeln!(text, "accept"),
        Some(policies) => writeln!(
            text,
            "counter reject with icmpx type admin-prohibited comment \"{}\"",
            policies.chars().filter(|c| c.is_ascii_graphic() && *c != '"').take(100).collect::<String>()
        ),
    };
    text
}

/// Applies a table.
pub(super) async fn apply(text: &str) -> anyhow::Result<()> {
    nft(text).await.map(drop).context("applying the nftables table inet mesh_agent")
}

/// Removes the table; false when there is none.
pub(super) async fn remove() -> anyhow::Result<bool> {
    let listed = command().args(["list", "tables", "inet"]).output().await.context(HINT)?;
    let wanted = format!("table inet {TABLE}");
    if !String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.trim() == wanted) {
        return Ok(false);
    }
    nft(&format!("delete table inet {TABLE}\n")).await?;
    Ok(true)
}

async fn nft(text: &str) -> anyhow::Result<()> {
    let mut child = command()
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(HINT)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("nft failed: {}; the agent needs CAP_NET_ADMIN and a kernel with nf_tables", said.trim());
    }
    Ok(())
}

fn command() -> tokio::process::Command {
    let mut command = tokio::process::Command::new("nft");
    command.env_remove("NOTIFY_SOCKET").kill_on_drop(true);
    // Found also where PATH is that of a service.
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command
}

const HINT: &str = "running nft; install the package nftables";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_rejected_with_their_policy_and_the_rest_is_left_alone() {
        let rules = [
            PlaintextRule { port: 8080, source: "10.0.0.0/8".parse().unwrap(), denied_by: None },
            PlaintextRule { port: 8080, source: "0.0.0.0/0".parse().unwrap(), denied_by: Some("shop/st\"rict".into()) },
        ];
        let text = table(&Config::default(), &rules);
        assert!(text.contains("th dport 8080 ip saddr 10.0.0.0/8 accept"));
        assert!(text.contains("nfproto ipv4 meta l4proto { tcp, udp } th dport 8080 counter reject"));
        assert!(text.contains("comment \"shop/strict\""));
        assert!(!text.contains("redirect") && !text.contains("dnat") && !text.contains("tproxy"));
    }
}
