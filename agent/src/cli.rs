//! The command line: what can be said, and with which exit code it ends.

mod client;
mod commands;
mod drain;
mod join;
mod status;
mod why;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use mesh_core::istio::BundleError;

/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not joined, 4 the daemon does not run, 5 the connection would be refused,
/// 6 a fresh bundle of istioctl is needed, 7 connections are left.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, about = "A userspace service mesh for this machine", after_help = EXAMPLES)]
pub struct Cli {
    /// Read this file instead of /etc/mesh-agent/agent.toml (conf.d is looked for beside it)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  sudo mesh-agent join < token          join with a token from `meshctl token create`
  sudo mesh-agent join --istio-bundle DIR   join istiod with what `istioctl x workload entry configure` wrote
  sudo systemctl enable --now mesh-agent
  mesh-agent status                     how this machine stands
  mesh-agent why self orders.shop.mesh.internal:80   which rule decides
  sudo mesh-agent drain --wait 60       no new connections here; before maintenance
  sudo mesh-agent leave                 leave the mesh and forget the identity

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not joined, 4 the daemon does not run,
            5 the connection would be refused (why), 6 a fresh bundle of istioctl is needed (join, status),
            7 connections are left (drain --wait)";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon (systemd does this)
    #[command(after_help = "Examples:\n  mesh-agent run\n  mesh-agent run --config /tmp/agent.toml")]
    Run,
    /// Join a mesh with a bootstrap token, or with a bundle of istioctl
    #[command(
        after_help = "Examples:\n  sudo mesh-agent join < token\n  sudo mesh-agent join --token-file /root/token --address 10.0.0.5\n  MESH_AGENT_TOKEN=mesh1... sudo -E mesh-agent join\n  sudo mesh-agent join --istio-bundle ./bundle\n  sudo mesh-agent join --istio-bundle ./bundle --istiod-address lb.example.com:15012"
    )]
    Join(JoinArguments),
    /// Show how this machine stands
    #[command(after_help = "Examples:\n  mesh-agent status\n  mesh-agent status -o json | jq .problems")]
    Status {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Say which rule decides about a connection, on both sides, without making it
    #[command(
        after_help = "Examples:\n  mesh-agent why self orders.shop.mesh.internal:80\n  mesh-agent why shop/web-10.0.0.4 10.0.0.5:8080\n  mesh-agent why spiffe://mesh.internal/ns/shop/sa/web orders.shop.mesh.internal:80 -o json\n\nExit codes: 0 it would be allowed, 5 it would be refused; others as of every command"
    )]
    Why {
        /// Who connects: self, an IP address, NAMESPACE/WORKLOAD or a SPIFFE ID
        #[arg(value_name = "SRC")]
        source: String,
        /// To what: an address or a name of the mesh, and a port
        #[arg(value_name = "DST:PORT")]
        destination: String,
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Take this machine out of rotation, or back in: others open new connections elsewhere, live ones go on
    #[command(
        after_help = "Examples:\n  sudo mesh-agent drain\n  sudo mesh-agent drain --wait 60 && sudo systemctl restart orders; sudo mesh-agent drain --undo\n\nIt lasts over restarts, until it is undone.\nExit codes with --wait: 0 others know and no connection of theirs is left, 6 time is up; others as of every command"
    )]
    Drain(DrainArguments),
    /// What a probe's command is run by
    #[command(
        hide = true,
        after_help = "Examples:\n  mesh-agent sandbox --hide /var/lib/mesh-agent -- /usr/bin/check"
    )]
    Sandbox(SandboxArguments),
    /// Leave the mesh: the control plane is told, the identity is deleted, the kernel is as before
    #[command(after_help = "Examples:\n  sudo mesh-agent leave")]
    Leave,
    /// Take everything of ours out of the kernel, after a crash
    #[command(after_help = "Examples:\n  sudo systemctl stop mesh-agent; sudo mesh-agent cleanup")]
    Cleanup,
    /// Look at the configuration
    #[command(
        subcommand,
        after_help = "Examples:\n  mesh-agent config check\n  mesh-agent config show -o json"
    )]
    Config(ConfigCommand),
}

#[derive(Debug, clap::Args)]
struct JoinArguments {
    /// The token; better on standard input, because other users see command lines
    token: Option<String>,
    /// Read the token from this file
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Join istiod with the five files that `istioctl x workload entry configure` wrote into this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["token", "token_file"])]
    istio_bundle: Option<PathBuf>,
    /// Where istiod (or its gateway) is reached, instead of what the bundle's `hosts` says
    #[arg(long, value_name = "HOST:PORT", requires = "istio_bundle")]
    istiod_address: Option<String>,
    /// The address by which peers reach this machine, instead of the one that the control plane sees
    #[arg(long)]
    address: Option<IpAddr>,
}

#[derive(Debug, clap::Args)]
struct DrainArguments {
    /// Back into rotation
    #[arg(long)]
    undo: bool,
    /// Wait until others know and their connections have ended, at most so long
    #[arg(long, value_name = "SECONDS", conflicts_with = "undo")]
    wait: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct SandboxArguments {
    /// A directory that the command must not see
    #[arg(long, value_name = "DIRECTORY")]
    hide: Vec<PathBuf>,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration, and say where it is wrong
    #[command(after_help = "Examples:\n  mesh-agent config check && sudo systemctl reload mesh-agent")]
    Check,
    /// Print every setting and where it comes from
    #[command(after_help = "Examples:\n  mesh-agent config show\n  mesh-agent config show -o json")]
    Show {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Parses the command line, runs it, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let text = format!("mesh-agent: {error:#}\n");
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            let stale = error.downcast_ref::<BundleError>().is_some_and(BundleError::is_stale);
            ExitCode::from(if stale { NEEDS_BUNDLE } else { FAILED })
        }
    }
}

const DONE: u8 = 0;
const FAILED: u8 = 1;
const NOT_JOINED: u8 = 3;
const NOT_RUNNING: u8 = 4;
const DENIED: u8 = 5;
const NEEDS_BUNDLE: u8 = 6;
const CONNECTIONS_LEFT: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "{} has no example", command.get_name());
            command
                .get_subcommands()
                .filter(|one| one.get_name() != "help")
                .for_each(check);
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }
}
