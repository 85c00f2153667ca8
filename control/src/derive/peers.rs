//! PeerAuthentication as DENY policies: STRICT means "deny sources without an identity".

use mesh_proto::istio::security::{Action, Authorization, Clause, Match, Rule, Scope};

use super::ROOT_NAMESPACE;
use super::policies::plaintext;
use crate::resources::{Labels, MutualTls, PeerAuthentication};

/// Name of the policy that every STRICT workload names; `_` cannot occur in an applied name.
const STATIC_STRICT: &str = "istio_converted_static_strict";
const CONVERTED: &str = "converted_peer_authentication_";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Unset,
    Open,
    Strict,
}

fn mode(mtls: Option<&MutualTls>) -> Mode {
    match mtls.and_then(|m| m.mode.as_deref()) {
        Some("STRICT") => Mode::Strict,
        Some("PERMISSIVE" | "DISABLE") => Mode::Open,
        _ => Mode::Unset,
    }
}

fn has_selector(peer: &PeerAuthentication) -> bool {
    peer.spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
}

/// What the mesh, or the namespace within it, says of workloads that say nothing themselves.
fn inherited(peers: &[&PeerAuthentication], namespace: &str) -> bool {
    let wide = |of: &str| {
        let mut found = peers.iter().filter(|p| p.metadata.namespace == of && !has_selector(p));
        found.next().map_or(Mode::Unset, |p| mode(p.spec.mtls.as_ref()))
    };
    let own = if namespace == ROOT_NAMESPACE {
        Mode::Unset
    } else {
        wide(namespace)
    };
    match own {
        Mode::Unset => wide(ROOT_NAMESPACE) == Mode::Strict,
        own => own == Mode::Strict,
    }
}

/// What a PeerAuthentication with a selector means: strict in general or not, and the ports where it is otherwise.
fn effective(peers: &[&PeerAuthentication], peer: &PeerAuthentication) -> (bool, Vec<u32>) {
    let strict = match mode(peer.spec.mtls.as_ref()) {
        Mode::Unset => inherited(peers, &peer.metadata.namespace),
        own => own == Mode::Strict,
    };
    let other = if strict { Mode::Open } else { Mode::Strict };
    let ports = peer.spec.port_level_mtls.iter();
    let otherwise = ports
        .filter(|(_, mtls)| mode(Some(mtls)) == other)
        .map(|(port, _)| *port);
    (strict, otherwise.collect())
}

/// The static policy, and one for each PeerAuthentication whose ports differ.
pub(super) fn converted(peers: &[&PeerAuthentication]) -> Vec<Authorization> {
    let any = Rule {
        clauses: vec![Clause {
            matches: vec![plaintext()],
        }],
    };
    let mut policies = vec![deny(ROOT_NAMESPACE, STATIC_STRICT.to_owned(), vec![any])];
    for peer in peers.iter().filter(|p| has_selector(p)) {
        let (strict, otherwise) = effective(peers, peer);
        if otherwise.is_empty() {
            continue;
        }
        let ports = if strict {
            Match {
                not_destination_ports: otherwise,
                ..Match::default()
            }
        } else {
            Match {
                destination_ports: otherwise,
                ..Match::default()
            }
        };
        let clauses = [ports, plaintext()].map(|m| Clause { matches: vec![m] });
        let name = format!("{CONVERTED}{}", peer.metadata.name);
        let rule = Rule {
            clauses: clauses.to_vec(),
        };
        policies.push(deny(&peer.metadata.namespace, name, vec![rule]));
    }
    policies
}

/// Keys of the converted policies that a workload names. Of several that select it, the first by name counts.
pub(super) fn for_workload(peers: &[&PeerAuthentication], namespace: &str, labels: &Labels) -> Vec<String> {
    let mut own = peers.iter().filter(|p| {
        p.metadata.namespace == namespace
            && namespace != ROOT_NAMESPACE
            && has_selector(p)
            && p.spec.selector.as_ref().is_some_and(|s| s.matches(labels))
    });
    let (strict, otherwise, name) = match own.next() {
        Some(peer) => {
            let (strict, otherwise) = effective(peers, peer);
            (strict, otherwise, peer.metadata.name.as_str())
        }
        None => (inherited(peers, namespace), Vec::new(), ""),
    };
    if !otherwise.is_empty() {
        return vec![format!("{namespace}/{CONVERTED}{name}")];
    }
    if strict {
        return vec![format!("{ROOT_NAMESPACE}/{STATIC_STRICT}")];
    }
    Vec::new()
}

fn deny(namespace: &str, name: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        dry_run: false,
    }
}
