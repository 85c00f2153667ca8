//! Our nftables table `inet mesh_agent`: it guards and marks, and rewrites nothing. The text is a pure function of the
//! settings and the policies; `nft` replaces the whole table in one transaction.

mod present;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use ipnet::IpNet;
use mesh_core::policy::PlaintextRule;

use super::KernelError;
use super::rules::{REVERSE_TOS, udp_mark};
use crate::config::{Capture, Dns};

/// Longest comment that nftables takes.
const COMMENT: usize = 128;
/// `nft` is in no PATH of a service on some distributions.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// What the table says.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    tun: String,
    mark: u32,
    caller_mark: u32,
    udp_mark: u32,
    /// TUN and resolver, IPv4 and IPv6.
    own4: [std::net::Ipv4Addr; 2],
    own6: [std::net::Ipv6Addr; 2],
    forward: Vec<String>,
    tunnel_port: u16,
    plaintext: Vec<PlaintextRule>,
    /// What an earlier run enforced, as `nft` printed it; it stands for `plaintext`.
    inherited: Option<String>,
}

/// What a policy did to plaintext packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The rule's comment: the policy.
    pub policy: String,
    pub allowed: bool,
    pub packets: u64,
}

impl Guard {
    /// A guard without plaintext rules. Tunnels to `tunnel_port` are judged by their certificates, not here.
    pub fn new(capture: &Capture, dns: &Dns, tunnel_port: u16) -> Self {
        Self {
            tun: capture.tun.clone(),
            mark: capture.mark,
            caller_mark: capture.caller_mark(),
            udp_mark: udp_mark(capture),
            own4: [capture.address4, dns.resolver4],
            own6: [capture.address6, dns.resolver6],
            forward: capture.forward_interfaces.clone(),
            tunnel_port,
            plaintext: Vec::new(),
            inherited: None,
        }
    }

    /// Replaces the plaintext rules; the first that matches decides, and what none matches is accepted.
    pub fn set_plaintext(&mut self, rules: &[PlaintextRule]) {
        self.plaintext = rules.to_vec();
        self.inherited = None;
    }

    /// Goes on with what an earlier run enforced, until [`Self::set_plaintext`].
    pub(super) fn inherit(&mut self, rules: String) {
        self.inherited = Some(rules);
    }

    pub(super) fn inherits(&self) -> bool {
        self.inherited.is_some()
    }

    /// The script for `nft -f`. Making the table before deleting it lets the deletion succeed in any case.
    pub fn text(&self) -> String {
        let mut text =
            String::from("table inet mesh_agent {}\ndelete table inet mesh_agent\ntable inet mesh_agent {\n");
        for chain in [
            self.arrivals(),
            self.callers(),
            self.replies(),
            self.datagrams(),
            self.forwarded(),
            REFUSE.into(),
            self.plaintext(),
        ] {
            text.push_str(&chain);
        }
        text.push_str("}\n");
        text
    }

    /// Nobody but the TUN reaches the TUN's addresses (CVE-2019-14899); what the TUN gives is marked for `rp_filter`.
    fn arrivals(&self) -> String {
        let Self { tun, own4, own6, .. } = self;
        let dscp = REVERSE_TOS >> 2;
        format!(
            "  chain arrivals {{
    type filter hook prerouting priority raw; policy accept;
    iifname \"{tun}\" ip dscp set {dscp}
    iifname \"{tun}\" ip6 dscp set {dscp}
    iifname {{ \"{tun}\", \"lo\" }} accept
    ip daddr {{ {}, {} }} counter drop
    ip6 daddr {{ {}, {} }} counter drop
  }}
",
            own4[0], own4[1], own6[0], own6[1]
        )
    }

    /// Remembers which connections came out of the TUN: those of callers whose address is preserved. Nothing else comes from
    /// there, and nobody else can make it so. The callers are remembered too, for when conntrack forgets a connection.
    ///
    /// Where rules of others (a container engine's) sent such a connection on, its answers are forwarded: marked before routing.
    fn callers(&self) -> String {
        let Self { tun, caller_mark, .. } = self;
        format!(
            "  set callers4 {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout 1d; }}
  set callers6 {{ type ipv6_addr; size 65535; flags dynamic, timeout; timeout 1d; }}
  chain callers {{
    type filter hook prerouting priority mangle; policy accept;
    iifname != \"{tun}\" ct mark {caller_mark} ct direction reply meta mark set {caller_mark} accept
    iifname != \"{tun}\" accept
    meta l4proto tcp ct state new ct mark set {caller_mark}
    ct mark {caller_mark} update @callers4 {{ ip saddr }}
    ct mark {caller_mark} update @callers6 {{ ip6 saddr }}
  }}
"
        )
    }

    /// A reply belongs to the connection that it answers. Judged after routing, so that only what would enter the TUN is
    /// marked, which makes the kernel route it again. A connection that was there before conntrack saw it (no SYN seen, and
    /// not from the TUN's own address) is left alone, too; its conntrack entry remembers that.
    ///
    /// What answers a preserved caller goes back into the TUN whatever the routes say, errors of the kernel's included; so
    /// does what may answer one, when conntrack does not know any more.
    ///
    /// UDP is marked for our table here, and not by a rule of routing: only a socket's first routing chooses its source
    /// address, and a server that listens on all of them would answer from the TUN's. What others marked goes their way, and so
    /// does what belongs to one wire, which its sender may have chosen.
    fn replies(&self) -> String {
        let Self {
            tun,
            mark,
            caller_mark,
            udp_mark,
            own4,
            own6,
            ..
        } = self;
        let old = "tcp flags & syn == 0 ct state new ct mark 0";
        format!(
            "  chain replies {{
    type route hook output priority mangle; policy accept;
    ct mark {caller_mark} oifname \"{tun}\" accept
    ct mark {caller_mark} meta mark set {caller_mark} accept
    oifname != \"{tun}\" ct direction reply accept
    oifname \"lo\" accept
    ip daddr {{ 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 }} accept
    ip6 daddr {{ fe80::/10, ff00::/8 }} accept
    oifname != \"{tun}\" meta l4proto udp meta mark 0 meta mark set {udp_mark} accept
    oifname != \"{tun}\" accept
    ct direction reply meta mark set {mark} accept
    ct mark {mark} meta mark set {mark} accept
    ip saddr != {} ip daddr @callers4 {old} ct mark set {caller_mark} accept
    ip6 saddr != {} ip6 daddr @callers6 {old} ct mark set {caller_mark} accept
    ip saddr != {} {old} ct mark set {mark} meta mark set {mark} accept
    ip6 saddr != {} {old} ct mark set {mark} meta mark set {mark} accept
  }}
",
            own4[0], own6[0], own4[0], own6[0]
        )
    }

    /// Remembers which UDP flows enter the TUN, so that nobody outside answers them in the name of their peers.
    fn datagrams(&self) -> String {
        let Self { tun, udp_mark, .. } = self;
        format!(
            "  chain datagrams {{
    type filter hook postrouting priority mangle; policy accept;
    oifname \"{tun}\" meta l4proto udp ct mark set {udp_mark}
    oifname != \"{tun}\" meta l4proto udp ct direction original ct mark {udp_mark} ct mark set 0
  }}
"
        )
    }

    /// Forwarded traffic enters and leaves the TUN only by the bridges that the settings name, or as a preserved caller's. What
    /// answers from there belongs to what it answers, and what was captured from there is answered by nobody else.
    fn forwarded(&self) -> String {
        let Self {
            tun,
            mark,
            caller_mark,
            udp_mark,
            forward,
            ..
        } = self;
        let (mut from, mut to, mut answers) = (String::new(), String::new(), String::new());
        if !forward.is_empty() {
            let names: Vec<String> = forward.iter().map(|name| format!("\"{name}\"")).collect();
            let names = names.join(", ");
            from = format!("iifname != {{ {names} }} ");
            to = format!("oifname != {{ {names} }} ");
            answers = format!(
                "  chain answers {{
    type filter hook prerouting priority mangle; policy accept;
    iifname {{ {names} }} ct direction reply ct mark != {caller_mark} meta mark set {mark}
  }}
"
            );
        }
        format!(
            "{answers}  chain forwarded {{
    type filter hook forward priority filter; policy accept;
    ct mark {caller_mark} accept
    oifname \"{tun}\" {from}counter drop
    iifname \"{tun}\" {to}counter drop
    iifname != \"{tun}\" meta l4proto udp ct direction reply ct mark {udp_mark} counter drop
  }}
"
        )
    }

    /// Every packet of a connection is judged, not only the first, so that a changed policy cuts at once. A reset carries
    /// nothing, and lets our application hear that its peer was cut off.
    fn plaintext(&self) -> String {
        let Self {
            tun,
            tunnel_port,
            udp_mark,
            ..
        } = self;
        let mut text = format!(
            "  chain plaintext {{
    type filter hook input priority filter; policy accept;
    iifname {{ \"{tun}\", \"lo\" }} accept
    meta l4proto udp ct direction reply ct mark {udp_mark} counter drop
    tcp flags & rst == rst ct state established accept
    ct direction reply accept
    meta l4proto {{ tcp, udp }} th dport {tunnel_port} accept
"
        );
        if let Some(inherited) = &self.inherited {
            text.push_str(inherited);
            text.push_str("  }\n");
            return text;
        }
        for rule in &self.plaintext {
            let verdict = if rule.allow { "accept" } else { "goto refuse" };
            let comment = comment(rule.policy.as_deref().unwrap_or("default"));
            for source in sources(rule.sources.as_deref()) {
                // Without ports only TCP: DHCP and the like are nobody's policy.
                let ports = match rule.ports.as_deref() {
                    None => "meta l4proto tcp".into(),
                    Some([]) => continue,
                    Some(ports) => format!("meta l4proto {{ tcp, udp }} th dport {{ {} }}", join(ports)),
                };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "    {source}{ports} counter {verdict} comment \"{comment}\"");
            }
        }
        text.push_str("  }\n");
        text
    }
}

/// The opener is told why; who is connected already is reset.
const REFUSE: &str = "  chain refuse {
    tcp flags & (fin | syn | rst | ack) == syn reject with icmpx admin-prohibited
    meta l4proto tcp reject with tcp reset
    reject with icmpx admin-prohibited
  }
";

/// Matches for sources, one per family; overlapping prefixes are merged, because a set takes none.
fn sources(sources: Option<&[IpNet]>) -> Vec<String> {
    let Some(sources) = sources else {
        return vec![String::new()];
    };
    let merged = IpNet::aggregate(&sources.to_vec());
    let (four, six): (Vec<IpNet>, Vec<IpNet>) = merged.into_iter().partition(|net| net.addr().is_ipv4());
    [("ip", four), ("ip6", six)]
        .into_iter()
        .filter(|(_, nets)| !nets.is_empty())
        .map(|(word, nets)| {
            // Everything of a family needs no address, and nftables takes no prefix of length 0 in a set.
            if nets.iter().any(|net| net.prefix_len() == 0) {
                let family = if word == "ip" { "ipv4" } else { "ipv6" };
                return format!("meta nfproto {family} ");
            }
            format!("{word} saddr {{ {} }} ", join(&nets))
        })
        .collect()
}

fn join<T: ToString + Ord + Clone>(items: &[T]) -> String {
    let mut items = items.to_vec();
    items.sort();
    items.dedup();
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Policy names come from the control plane: whatever could end the string becomes a dot.
fn comment(policy: &str) -> String {
    let safe = |letter: char| letter.is_ascii_alphanumeric() || "-_./: ".contains(letter);
    policy
        .chars()
        .map(|letter| if safe(letter) { letter } else { '.' })
        .take(COMMENT)
        .collect()
}

/// Runs `nft`, and remembers what it loaded.
#[derive(Debug, Default)]
pub(super) struct Nft {
    loaded: Option<String>,
}

impl Nft {
    /// Replaces the table by this text, unless it is what was loaded last.
    pub(super) fn load(&mut self, text: &str) -> Result<(), KernelError> {
        if self.loaded.as_deref() == Some(text) {
            return Ok(());
        }
        self.loaded = None;
        run(&["-f", "-"], text)?;
        self.loaded = Some(text.into());
        Ok(())
    }

    /// Loads this text when somebody else removed our table; whether it was so.
    pub(super) fn restore(&mut self, text: &str) -> Result<bool, KernelError> {
        if present::is_there().map_err(|error| KernelError::Nft(error.to_string()))? {
            return Ok(false);
        }
        self.loaded = None;
        self.load(text).map(|()| true)
    }

    /// Removes the table.
    pub(super) fn unload(&mut self) -> Result<(), KernelError> {
        self.loaded = None;
        run(&["-f", "-"], "table inet mesh_agent {}\ndelete table inet mesh_agent\n").map(|_| ())
    }

    /// The plaintext rules of an earlier run's table; `None` without such a table, or when it judged nothing.
    pub(super) fn enforced() -> Result<Option<String>, KernelError> {
        let output = match run(&["-s", "list", "chain", "inet", "mesh_agent", "plaintext"], "") {
            Ok(output) => output,
            Err(KernelError::Nft(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(policy_lines(&String::from_utf8_lossy(&output.stdout)))
    }

    /// What each policy counted.
    pub(super) fn counts(&self) -> Result<Vec<Count>, KernelError> {
        let output = run(&["-j", "list", "chain", "inet", "mesh_agent", "plaintext"], "")?;
        let json: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|error| KernelError::Nft(error.to_string()))?;
        let entries = json["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(entries.iter().filter_map(|entry| count(&entry["rule"])).collect())
    }
}

/// Of a listed chain the lines after those that [`Guard`] begins every plaintext chain with. Sets may go over several lines.
fn policy_lines(listing: &str) -> Option<String> {
    let (_, after) = listing.split_once("ct direction reply accept\n")?;
    let (_, rules) = after.split_once('\n')?;
    let (rules, _) = rules.split_once("\t}\n")?;
    (!rules.trim().is_empty()).then(|| rules.to_owned())
}

fn count(rule: &serde_json::Value) -> Option<Count> {
    let policy = rule["comment"].as_str()?.to_owned();
    let statements = rule["expr"].as_array()?;
    let packets = statements
        .iter()
        .find_map(|statement| statement["counter"]["packets"].as_u64())?;
    let allowed = statements.iter().any(|statement| statement.get("accept").is_some());
    Some(Count {
        policy,
        allowed,
        packets,
    })
}

fn run(arguments: &[&str], input: &str) -> Result<Output, KernelError> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for program in PROGRAMS {
        match run_program(program, arguments, input) {
            Ok(output) if output.status.success() => return Ok(output),
            Ok(output) => return Err(KernelError::Nft(String::from_utf8_lossy(&output.stderr).trim().into())),
            Err(other) => error = other,
        }
        if error.kind() != io::ErrorKind::NotFound {
            break;
        }
    }
    Err(KernelError::NoNft(error))
}

fn run_program(program: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all of its input before it says anything, so that neither side blocks. Dropping stdin ends it.
    let fed = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    match fed {
        // It gave up early; its own words say why.
        Err(error) if output.status.success() => Err(error),
        _ => Ok(output),
    }
}

#[cfg(test)]
mod tests;
