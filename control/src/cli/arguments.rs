//! `meshctl`'s arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "Examples:
  meshctl apply -f group.yaml                       make or change resources (file, directory, or - for stdin)
  meshctl token create --group shop/orders          a token for one machine, for one hour
  meshctl get workloadentries -n shop -o yaml       what is there
  meshctl agents                                    machines that joined
  meshctl revoke 4f1c22aa90b3d1e7                   cut a machine off, at once
  meshctl ca rotate                                 begin to replace the CA's key

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 the control plane cannot be reached.";

/// Operate a mesh-control.
#[derive(Parser)]
#[command(name = "meshctl", version, after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Where mesh-control is: unix:///PATH, or HOST:PORT with an operator token.
    #[arg(
        long,
        global = true,
        env = "MESHCTL_SERVER",
        default_value = "unix:///run/mesh-control/control.sock",
        value_name = "WHERE"
    )]
    pub(super) server: String,
    /// Operator token; it names the server too, unless --server gives HOST:PORT.
    #[arg(
        long,
        global = true,
        env = "MESHCTL_OPERATOR_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(super) operator_token: Option<String>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Yaml,
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// Join tokens.
    #[command(
        after_help = "Examples:\n  meshctl token create --group shop/orders --lifetime 1h\n  meshctl token create --group shop/orders --uses 20 --cidr 10.0.0.0/8\n  meshctl token pack --istio-bundle ./bundle > token\n  meshctl token list\n  meshctl token revoke 0123456789abcdef"
    )]
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make or change resources; all or nothing.
    #[command(
        after_help = "Examples:\n  meshctl apply -f policy.yaml\n  meshctl apply -f ./mesh/\n  cat *.yaml | meshctl apply -f -"
    )]
    Apply(Apply),
    /// Show resources.
    #[command(
        after_help = "Examples:\n  meshctl get serviceentries\n  meshctl get ap deny-all -n shop -o yaml\n  meshctl get all -o json"
    )]
    Get {
        /// WorkloadGroup, WorkloadEntry, ServiceEntry, Service, AuthorizationPolicy, PeerAuthentication, Gateway, Namespace (or plural,
        /// or wg, we, se, svc, ap, pa, gtw, ns), or all.
        kind: String,
        /// Only the one of this name.
        name: Option<String>,
        /// Only this namespace.
        #[arg(short, long)]
        namespace: Option<String>,
    },
    /// Remove a resource.
    #[command(after_help = "Example:\n  meshctl delete authorizationpolicy deny-all -n shop")]
    Delete {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Machines that joined: state, certificates, refused clones.
    Agents,
    /// Cut a machine off: its host key and certificates are refused at once, everywhere.
    #[command(after_help = "Examples:\n  meshctl revoke 4f1c22aa90b3d1e7\n  meshctl revoke shop/orders-10.0.0.7")]
    Revoke {
        /// Agent id, or NAMESPACE/NAME of its workload.
        agent: String,
    },
    /// The certificate authority.
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Operator tokens, for calls from elsewhere than this machine's root.
    Operator {
        #[command(subcommand)]
        command: OperatorCommand,
    },
}

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it, alone, on standard output.
    Create(TokenCreate),
    /// Make one token of a bundle of istioctl, for a machine that joins istiod; no control plane is asked.
    Pack(TokenPack),
    /// Show tokens; never their secrets.
    List,
    /// Make a token useless; machines that joined with it stay.
    Revoke {
        /// Its id.
        id: String,
    },
}

#[derive(Args)]
pub(super) struct TokenCreate {
    /// WorkloadGroup, as NAMESPACE/NAME; it fixes the identity.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(super) group: String,
    /// How long it can be used: 90s, 30m, 1h, 7d.
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub(super) lifetime: u32,
    /// How many machines may use it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) uses: u32,
    /// Where it may be used from; can be repeated.
    #[arg(long, value_name = "CIDR")]
    pub(super) cidr: Vec<String>,
    /// HOST:PORT of the control plane, instead of what its configuration says; can be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) address: Vec<String>,
}

#[derive(Args)]
pub(super) struct TokenPack {
    /// Directory with the five files that `istioctl x workload entry configure` wrote.
    #[arg(long, value_name = "DIR")]
    pub(super) istio_bundle: PathBuf,
    /// Where machines reach istiod (or its gateway), instead of what the bundle's `hosts` says.
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) istiod_address: Option<String>,
}

#[derive(Args)]
pub(super) struct Apply {
    /// File, directory (*.yaml and *.yml, in the order of their names), or - for standard input; can be repeated.
    #[arg(short, long, required = true, value_name = "FILE|DIR|-")]
    pub(super) filename: Vec<PathBuf>,
    /// Only check and say what would change.
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Subcommand)]
pub(super) enum CaCommand {
    /// Anchors, which one signs, and how many agents acknowledged the newest.
    Status,
    /// Print the anchors, PEM: what a ztunnel takes as CA_ROOT_CA and XDS_ROOT_CA.
    Root,
    /// Begin to replace the CA's key. It signs once every agent with a live certificate acknowledged it.
    Rotate {
        /// Take the next step without waiting; agents that did not acknowledge it are cut off until they join again.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Subcommand)]
pub(super) enum OperatorCommand {
    /// Make an operator token and print it, alone, on standard output.
    Create {
        /// Whom it is for; one of the same name is replaced.
        name: String,
        /// How long it is good for: 12h, 90d.
        #[arg(long, default_value = "90d", value_parser = duration)]
        lifetime: u32,
    },
}

/// Seconds of `90s`, `30m`, `1h`, `7d`, or a bare number of seconds.
fn duration(text: &str) -> Result<u32, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write it like 90s, 30m, 1h or 7d".into()),
    };
    let seconds = number.parse::<u32>().ok().and_then(|n| n.checked_mul(factor));
    seconds
        .filter(|s| *s > 0)
        .ok_or_else(|| "write it like 90s, 30m, 1h or 7d".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
        assert_eq!(duration("1h"), Ok(3600));
        assert_eq!(duration("90"), Ok(90));
        for bad in ["", "h", "0s", "1w", "99999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
