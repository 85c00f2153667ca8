//! From a bootstrap token to a membership: certificate, trust anchors, addresses, kept in the state directory.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What this machine is a member of, and as whom. Kept as `membership.json` in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub agent_id: String,
    pub trust_domain: String,
    pub namespace: String,
    pub service_account: String,
    /// Name of our WorkloadEntry.
    pub workload_name: String,
    pub workload_group: String,
    pub network: String,
    pub cluster_id: String,
    pub dns_domain: String,
    pub address: IpAddr,
    /// `host:port` of the control plane.
    pub control_addresses: Vec<String>,
    /// Hex SHA-256 of the SubjectPublicKeyInfo of each accepted CA key.
    pub ca_pins: Vec<String>,
}
