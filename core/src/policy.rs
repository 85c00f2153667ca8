//! May this connection be, and which rule says so: Istio's L4 authorization (as ztunnel does it).

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::world::{Workload, World};

mod matching;
mod plaintext;
#[cfg(test)]
mod tests;

pub use plaintext::{PlaintextRule, TOO_MANY_SOURCES, compile_plaintext, judge_plaintext};

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
///
/// In order: no policies yet, then deny; an enforced DENY that matches, then deny; a policy that the workload names and that
/// we do not hold, then deny; no enforced ALLOW, or one that matches, then allow; else deny.
pub fn authorize(world: &World, workload: &Workload, connection: &Connection) -> Verdict {
    if !world.policies_synced() {
        return Verdict {
            decision: Decision::Denied(Denial::NotSynced),
            dry_run: vec![],
        };
    }
    let applicable = Applicable::of(world, workload);
    let facts = matching::Facts::of(connection);
    let decision = applicable.decide(&facts, |policy| !policy.dry_run);
    let dry_run = applicable.dry_run(&facts, &decision);
    Verdict { decision, dry_run }
}

/// Keys of the policies that `workload` names and that `world` lacks: while there is one, everything is denied.
pub fn missing_policies<'a>(world: &'a World, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<str>> {
    workload
        .authorization_policies
        .iter()
        .filter(|key| world.policy(key).is_none())
}

impl Decision {
    /// Whether the connection may be.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Denial {
    /// Keys of the policies that say so; none before the first policies have come.
    pub fn policies(&self) -> &[Arc<str>] {
        match self {
            Self::Explicit(key) | Self::MissingPolicy(key) => std::slice::from_ref(key),
            Self::NotAllowed(keys) => keys,
            Self::NotSynced => &[],
        }
    }
}

/// The policies that hold for one workload, each once.
struct Applicable<'a> {
    policies: Vec<&'a Arc<Policy>>,
    missing: Option<&'a Arc<str>>,
}

impl<'a> Applicable<'a> {
    fn of(world: &'a World, workload: &'a Workload) -> Self {
        let mut policies: Vec<_> = world.policies_of_namespace(&workload.namespace).collect();
        for key in &workload.authorization_policies {
            // A GLOBAL policy, or one of the own namespace, may be named as well; it is there already.
            let named = world.policy(key).filter(|policy| !covers(policy, workload));
            policies.extend(named.filter(|named| !policies.iter().any(|policy| policy.key == named.key)));
        }
        Self {
            policies,
            missing: missing_policies(world, workload).next(),
        }
    }

    /// By the policies that `counts` picks.
    fn decide(&self, facts: &matching::Facts<'_>, counts: impl Fn(&Policy) -> bool) -> Decision {
        let of = |action| {
            let counts = &counts;
            self.policies
                .iter()
                .filter(move |policy| policy.action == action && counts(policy))
        };
        if let Some(policy) = of(Action::Deny).find(|policy| policy.matches(facts)) {
            return Decision::Denied(Denial::Explicit(Arc::clone(&policy.key)));
        }
        if let Some(key) = self.missing {
            return Decision::Denied(Denial::MissingPolicy(Arc::clone(key)));
        }
        if of(Action::Allow).next().is_none() {
            return Decision::Allowed { policy: None };
        }
        match of(Action::Allow).find(|policy| policy.matches(facts)) {
            Some(policy) => Decision::Allowed {
                policy: Some(Arc::clone(&policy.key)),
            },
            None => {
                let keys = of(Action::Allow).map(|policy| Arc::clone(&policy.key)).collect();
                Decision::Denied(Denial::NotAllowed(keys))
            }
        }
    }

    /// Each dry-run policy that, enforced alone with the enforced ones, would change the outcome; and to what.
    fn dry_run(&self, facts: &matching::Facts<'_>, actual: &Decision) -> Vec<(Arc<str>, Action)> {
        let changed = |tried: &&&Arc<Policy>| {
            let decision = self.decide(facts, |policy| !policy.dry_run || policy.key == tried.key);
            decision.is_allowed() != actual.is_allowed()
        };
        let outcome = if actual.is_allowed() {
            Action::Deny
        } else {
            Action::Allow
        };
        let dry = self.policies.iter().filter(|policy| policy.dry_run);
        dry.filter(changed)
            .map(|policy| (Arc::clone(&policy.key), outcome))
            .collect()
    }
}

/// Whether `policy` holds for `workload` without being named by it.
fn covers(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope {
        Scope::Global => true,
        Scope::Namespace => policy.namespace == workload.namespace,
        Scope::WorkloadSelector => false,
    }
}
