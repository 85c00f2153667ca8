//! May this connection be, and which rule says so: Istio's L4 authorization (istio-wire section 3.4).

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::world::{Workload, World};

/// Which workloads a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Global,
    Namespace,
    WorkloadSelector,
}

/// What a match leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

/// One policy: rules (any) of clauses (all) of matches (any).
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// `namespace/name`.
    pub key: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub scope: Scope,
    pub action: Action,
    pub dry_run: bool,
    pub rules: Vec<Vec<Vec<Match>>>,
}

/// Field kinds are ANDed; within a kind: positive list empty or any hits, and no negative one hits. Empty never matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    pub service_accounts: Vec<(Arc<str>, Arc<str>)>,
    pub not_service_accounts: Vec<(Arc<str>, Arc<str>)>,
}

/// How a string is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Presence,
}

/// The facts of one connection, as the destination sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    /// Taken from the verified certificate; none for plaintext.
    pub identity: Option<Identity>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// The answer, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// By this policy, or by none when no ALLOW policy applies.
    Allowed {
        policy: Option<Arc<str>>,
    },
    Denied(Denial),
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A DENY policy matched: its key.
    Explicit(Arc<str>),
    /// ALLOW policies apply and none matched: their keys.
    NotAllowed(Vec<Arc<str>>),
    /// The workload names a policy that we do not have (or rejected): its key.
    MissingPolicy(Arc<str>),
    /// The first policies have not arrived yet.
    NotSynced,
}

/// A decision, and what dry-run policies would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    /// (policy key, its decision as if it were enforced) of dry-run policies that would change the outcome.
    pub dry_run: Vec<(Arc<str>, Action)>,
}

/// Judges a connection towards `workload`.
#[allow(unused_variables)]
pub fn authorize(world: &World, workload: &Workload, connection: &Connection) -> Verdict {
    todo!()
}

/// What of plaintext may come in, for the kernel: decided per (port, source prefix).
///
/// In order, first hit wins; after the last rule everything is allowed. `sources: None` means any source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaintextRule {
    pub sources: Option<Vec<IpNet>>,
    pub ports: Option<Vec<u16>>,
    pub allow: bool,
    /// The policy that says so.
    pub policy: Option<Arc<str>>,
}

/// Compiles the policies of `workload` for sources without identity into ordered rules (design section 6). Ports that the
/// workload does not declare are left alone unless a policy names them.
#[allow(unused_variables)]
pub fn compile_plaintext(world: &World, workload: &Workload) -> Vec<PlaintextRule> {
    todo!()
}
