//! Joining istiod: the bundle that `istioctl x workload entry configure` writes, and what istiod wants to be told of us.
//!
//! All of it is reading of text: nothing here says that a bundle is genuine, which is what istiod decides. What is checked is
//! what can be known beforehand, so that a file that was forgotten or has become stale is named before anybody is asked.

mod bundle;
mod env;
mod jwt;
mod mesh;
mod metadata;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use bundle::{Files, check, pack, pem, read};
pub use env::Malformed;
pub use jwt::{Claims, claims};
pub use mesh_proto::mesh::IstioBundle;
pub use metadata::{Registration, locality, metadata};

/// Longest file of a bundle, in bytes.
pub const MAX_FILE: usize = 256 * 1024;
/// The audience that istiod asks of a token.
pub const AUDIENCE: &str = "istio-ca";
/// Longest name of a WorkloadEntry; longer ones lose their head (as istiod does it).
const MAX_NAME: usize = 253;

/// What is wrong with a bundle, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("{0} is missing: copy all five files that `istioctl x workload entry configure` wrote")]
    Missing(&'static str),
    #[error("{0} is empty: make the bundle again")]
    Empty(&'static str),
    #[error("{0} is longer than {MAX_FILE} bytes: that is no file of a bundle")]
    TooLong(&'static str),
    #[error("{file}: {why}")]
    Unreadable { file: &'static str, why: String },
    #[error("{file} does not say {what}: make the bundle again{hint}")]
    Incomplete {
        file: &'static str,
        what: &'static str,
        hint: &'static str,
    },
    #[error(
        "hosts is empty: istioctl found no IP address of the gateway (load balancers of some clouds have a name only); \
         give it with --istiod-address HOST:PORT, or make the bundle again with --ingressIP"
    )]
    NoAddress,
    #[error(
        "istio-token expired {} ago (if the clock of this machine is right); make a fresh bundle: {command}",
        span(*.seconds)
    )]
    Expired { seconds: u64, command: String },
    #[error(
        "istio-token is for the audience {0:?}, and istiod wants {AUDIENCE:?}: make the bundle again with istioctl"
    )]
    Audience(Vec<String>),
    #[error(
        "istio-token is of {found:?}, but the bundle is for the service account {expected:?}: files of two bundles are mixed"
    )]
    Account { found: String, expected: String },
}

impl BundleError {
    /// Whether the bundle was good, and is too old.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Expired { .. })
    }
}

/// The name of the WorkloadEntry that istiod makes for us when we connect (as istiod does it).
pub fn entry_name(group: &str, address: IpAddr, network: &str) -> String {
    let mut name = format!("{group}-{}", address.to_string().replace(':', "-"));
    if !network.is_empty() {
        name.push('-');
        name.push_str(network);
    }
    let cut = name.ceil_char_boundary(name.len().saturating_sub(MAX_NAME));
    name.split_off(cut)
}

/// The command that makes a fresh bundle.
pub fn fresh_bundle(namespace: &str, group: &str, cluster: &str) -> String {
    let cluster = if cluster.is_empty() { "CLUSTER" } else { cluster };
    format!(
        "istioctl x workload entry configure --name {group} --namespace {namespace} --clusterID {cluster} --autoregister -o DIR"
    )
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}
