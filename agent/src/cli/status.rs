//! `mesh-agent status`: one screen.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::SystemTime;

use serde_json::Value;

use super::commands::print;
use super::{DONE, FAILED, NEEDS_BUNDLE, NOT_JOINED, NOT_RUNNING, Output, client};
use crate::certs::unix;
use crate::config::Config;

/// Runs the command. 0: healthy, 1: something is wrong, 3: not joined, 4: no daemon, 6: a fresh bundle is needed.
pub(super) fn run(config: &Config, output: Output) -> anyhow::Result<u8> {
    let Some((_, text)) = client::request(config, "GET", "/status", String::new())? else {
        print(match output {
            Output::Json => "{\"state\":\"stopped\",\"healthy\":false}\n",
            Output::Text => "mesh-agent does not run; start it: sudo systemctl start mesh-agent\n",
        })?;
        return Ok(NOT_RUNNING);
    };
    let status: Value = serde_json::from_str(&text)?;
    match output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&status)?))?,
        Output::Text => print(&screen(&status, std::io::stdout().is_terminal()))?,
    }
    Ok(match (status["state"].as_str(), status["healthy"].as_bool()) {
        (Some("waiting"), _) => NOT_JOINED,
        _ if status["needs_bundle"].is_string() => NEEDS_BUNDLE,
        (_, Some(true)) => DONE,
        _ => FAILED,
    })
}

fn screen(status: &Value, colours: bool) -> String {
    let paint = |text: &str, code: &str| {
        if colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    };
    let mut out = String::new();
    if status["state"] == "waiting" {
        let _ = writeln!(
            out,
            "{}: run `sudo mesh-agent join` with a token",
            paint("waiting to be joined", "33")
        );
        if let Some(error) = status["error"].as_str() {
            let _ = writeln!(out, "problem        {error}");
        }
        return out;
    }
    let healthy = status["healthy"] == true;
    let word = if healthy {
        paint("healthy", "32")
    } else if status["needs_bundle"].is_string() {
        paint("needs a fresh bundle", "31")
    } else {
        paint("degraded", "31")
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<14} {value}");
    };
    line("state", word);
    line("identity", text(&status["identity"]));
    line(
        "workload",
        format!("{} at {}", text(&status["workload"]), text(&status["address"])),
    );
    let control = if status["control"]["connected"] == true {
        "connected"
    } else {
        "not connected"
    };
    line("control plane", control.into());
    let world = &status["world"];
    let saved = if world["from_snapshot"] == true {
        ", from the last saved copy"
    } else {
        ""
    };
    line(
        "world",
        format!(
            "{} services, {} workloads, {} policies; heard {} ago{saved}",
            world["services"],
            world["workloads"],
            world["policies"],
            span(world["age_seconds"].as_u64().unwrap_or(0)),
        ),
    );
    line(
        "certificate",
        format!(
            "{} left",
            span(status["certificate"]["seconds_left"].as_u64().unwrap_or(0))
        ),
    );
    line("capture", format!("{} prefixes", status["capture"]["prefixes"]));
    line(
        "dns",
        format!(
            "{} for {}",
            text(&status["dns"]["resolver"][0]),
            text(&status["dns"]["domain"])
        ),
    );
    let flows = &status["flows"];
    let plain = match flows["udp_plain"].as_u64() {
        None | Some(0) => String::new(),
        Some(count) => paint(&format!(", {count} of UDP not encrypted"), "33"),
    };
    line(
        "flows",
        format!("{} live, {} of UDP{plain}", flows["live"], flows["udp"]),
    );
    line("callers", callers(&status["inbound"]));
    line("transport", transports(&status["transport"]));
    line("health", health(&status["health"]));
    for problem in status["problems"].as_array().into_iter().flatten() {
        line("problem", text(problem));
    }
    for rejected in status["policies"]["rejected"].as_array().into_iter().flatten() {
        line(
            "rejected",
            format!("{}: {}", text(&rejected["name"]), text(&rejected["reason"])),
        );
    }
    out
}

/// What carries new streams, and for which peers it is TCP and why.
fn transports(transport: &Value) -> String {
    let peers = transport["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let over = |kind: &str| peers.iter().filter(|peer| peer["transport"] == kind).count();
    let preference = transport["preference"].as_str().unwrap_or_default();
    let mut out = match preference {
        "auto" => format!("{} peers over QUIC, {} over TCP", over("quic"), over("tcp")),
        forced => format!("{forced} for all peers, as configured (tunnel.transport)"),
    };
    for peer in peers.iter().filter(|peer| peer["transport"] == "tcp").take(SHOWN_PEERS) {
        let (address, why) = (&peer["peer"], &peer["why"]);
        let (address, why) = (address.as_str().unwrap_or_default(), why.as_str().unwrap_or_default());
        let since = span(peer["for_seconds"].as_u64().unwrap_or(0));
        let _ = write!(out, "\n{:<14}   {address} over TCP for {since}: {why}", "");
    }
    out
}

/// What applications see as their peer.
fn callers(inbound: &Value) -> String {
    let mut out = match inbound["preserve_source"].as_str().unwrap_or_default() {
        "on" => "seen by applications with their own address".to_owned(),
        "off" => "seen with this machine's address, as configured (inbound.preserve_source)".to_owned(),
        _ => "seen with this machine's address".to_owned(),
    };
    for closed in inbound["unavailable"].as_array().into_iter().flatten() {
        let reason = closed["reason"].as_str().unwrap_or_default();
        let _ = write!(out, "\n{:<14}   {reason}", "");
    }
    out
}

/// So many peers are shown one by one; `--output json` has all.
const SHOWN_PEERS: usize = 8;

fn health(health: &Value) -> String {
    let mut text = health["state"].as_str().unwrap_or("unknown").to_owned();
    if let Some(since) = health["draining_since"].as_u64() {
        let now = unix(SystemTime::now());
        let _ = write!(text, " since {} ago", span(now.saturating_sub(since)));
    }
    if let Some(probe) = health["probe"].as_str() {
        let _ = write!(text, "; probe {probe}");
    }
    text
}

/// A span of time in its two largest units.
fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (86_399, "23 h 59 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
