//! May this connection be, and which rule says so: Istio's L4 authorization (istio-wire section 3.4).

pub mod plaintext;
#[cfg(test)]
mod tests;

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

/// Judges a connection towards `workload` (istio-wire section 3.4):
/// a matching DENY denies; a policy that the workload names and we lack denies; with no ALLOW policy everything is allowed;
/// a matching ALLOW allows; everything else is denied. Dry-run policies only report.
pub fn authorize(world: &World, workload: &Workload, connection: &Connection) -> Verdict {
    if !world.policies_synced() {
        return Verdict {
            decision: Decision::Denied(Denial::NotSynced),
            dry_run: Vec::new(),
        };
    }
    let (policies, missing) = applicable(world, workload);
    let dry_run = policies
        .iter()
        .filter(|policy| policy.dry_run && policy.matches(connection) == (policy.action == Action::Deny))
        .map(|policy| (policy.key.clone(), Action::Deny))
        .collect();
    Verdict {
        decision: decide(&policies, missing, connection),
        dry_run,
    }
}

fn decide(policies: &[&Arc<Policy>], missing: Option<Arc<str>>, connection: &Connection) -> Decision {
    let enforced = |action| {
        policies
            .iter()
            .filter(move |policy| !policy.dry_run && policy.action == action)
    };
    if let Some(policy) = enforced(Action::Deny).find(|policy| policy.matches(connection)) {
        return Decision::Denied(Denial::Explicit(policy.key.clone()));
    }
    if let Some(missing) = missing {
        return Decision::Denied(Denial::MissingPolicy(missing));
    }
    if enforced(Action::Allow).next().is_none() {
        return Decision::Allowed { policy: None };
    }
    match enforced(Action::Allow).find(|policy| policy.matches(connection)) {
        Some(policy) => Decision::Allowed {
            policy: Some(policy.key.clone()),
        },
        None => Decision::Denied(Denial::NotAllowed(
            enforced(Action::Allow).map(|policy| policy.key.clone()).collect(),
        )),
    }
}

/// The policies for a workload, and the first one that it names and that we do not have.
fn applicable<'a>(world: &'a World, workload: &Workload) -> (Vec<&'a Arc<Policy>>, Option<Arc<str>>) {
    let mut policies: Vec<_> = world.unselected_policies(&workload.namespace).collect();
    let mut missing = None;
    for key in &workload.authorization_policies {
        match world.policy(key) {
            Some(policy) if policy.scope == Scope::WorkloadSelector => policies.push(policy),
            // Of another scope: it applies by that, or not at all.
            Some(_) => {}
            None => missing = missing.or_else(|| Some(key.clone())),
        }
    }
    (policies, missing)
}

/// Keys that `workload` names and that we do not have.
pub fn missing_policies(world: &World, workload: &Workload) -> Vec<Arc<str>> {
    workload
        .authorization_policies
        .iter()
        .filter(|key| world.policy(key).is_none())
        .cloned()
        .collect()
}

impl Policy {
    /// Any rule, in which all clauses have any match. No rules: no match.
    fn matches(&self, connection: &Connection) -> bool {
        let clause = |clause: &Vec<Match>| clause.is_empty() || clause.iter().any(|one| one.matches(connection));
        self.rules.iter().any(|rule| rule.iter().all(clause))
    }
}

impl Match {
    fn matches(&self, connection: &Connection) -> bool {
        if *self == Self::default() {
            return false;
        }
        let (source, destination) = (
            connection.source.ip().to_canonical(),
            connection.destination.ip().to_canonical(),
        );
        let port = connection.destination.port();
        let identity = connection.identity.as_ref();
        let principal = identity.map(Identity::principal);
        // Without an identity the namespace is the empty string, and a principal equals nothing.
        let namespace = identity.map_or("", Identity::namespace);
        let account = |(of, name): &(Arc<str>, Arc<str>)| {
            identity.is_some_and(|identity| identity.namespace() == &**of && identity.service_account() == &**name)
        };
        both(&self.namespaces, &self.not_namespaces, |one| one.matches(namespace))
            && both(&self.principals, &self.not_principals, |one| {
                principal.as_ref().is_some_and(|p| one.matches(p))
            })
            && both(&self.source_ips, &self.not_source_ips, |net| net.contains(&source))
            && both(&self.destination_ips, &self.not_destination_ips, |net| {
                net.contains(&destination)
            })
            && both(&self.destination_ports, &self.not_destination_ports, |one| *one == port)
            && both(&self.service_accounts, &self.not_service_accounts, account)
    }
}

/// The positive list is empty or any hits, and none of the negative list hits.
fn both<T>(positive: &[T], negative: &[T], hits: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&hits)) && !negative.iter().any(&hits)
}

impl StringMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}
