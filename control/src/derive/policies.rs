//! AuthorizationPolicies as L4 authorization, and which of them each workload must name.

use mesh_proto::istio::security::string_match::MatchType;
use mesh_proto::istio::security::{
    self, Action, Address, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
};

use super::{ROOT_NAMESPACE, Sorted, bytes_of, peers};
use crate::resources::check::parse_range;
use crate::resources::{AuthorizationPolicy, Condition, Labels, PeerAuthentication, Selector};

pub(super) fn all(sorted: &Sorted<'_>) -> Vec<Authorization> {
    let mut policies: Vec<_> = sorted.policies.iter().map(|p| convert(p)).collect();
    policies.extend(peers::converted(&sorted.peers));
    policies
}

/// Policies with selectors, for finding those of a workload.
pub(super) struct Attachments<'a> {
    policies: Vec<&'a AuthorizationPolicy>,
    peers: Vec<&'a PeerAuthentication>,
}

impl<'a> Attachments<'a> {
    pub(super) fn of(sorted: &Sorted<'a>) -> Self {
        let policies = sorted.policies.iter().copied();
        Self {
            policies: policies.filter(|p| selects(p.spec.selector.as_ref())).collect(),
            peers: sorted.peers.clone(),
        }
    }

    /// Keys of the policies that a workload with these labels names: sorted, so that equal worlds are equal on the wire.
    pub(super) fn for_workload(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let mine = self.policies.iter().filter(|policy| {
            let of = &policy.metadata.namespace;
            (of == namespace || of == ROOT_NAMESPACE)
                && policy.spec.selector.as_ref().is_some_and(|s| s.matches(labels))
        });
        let mut keys: Vec<_> = mine
            .map(|p| format!("{}/{}", p.metadata.namespace, p.metadata.name))
            .collect();
        keys.extend(peers::for_workload(&self.peers, namespace, labels));
        keys.sort();
        keys.dedup();
        keys
    }
}

fn selects(selector: Option<&Selector>) -> bool {
    selector.is_some_and(|s| !s.match_labels.is_empty())
}

fn convert(policy: &AuthorizationPolicy) -> Authorization {
    let (meta, spec) = (&policy.metadata, &policy.spec);
    let scope = if selects(spec.selector.as_ref()) {
        Scope::WorkloadSelector
    } else if meta.namespace == ROOT_NAMESPACE {
        Scope::Global
    } else {
        Scope::Namespace
    };
    let deny = spec.action.as_deref() == Some("DENY");
    let dry = meta.annotations.get("istio.io/dry-run");
    Authorization {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        scope: scope.into(),
        action: if deny { Action::Deny } else { Action::Allow }.into(),
        rules: spec
            .rules
            .iter()
            .map(|rule| convert_rule(rule, &meta.namespace))
            .collect(),
        dry_run: dry.is_some_and(|d| d.parse() == Ok(true)),
    }
}

/// All `to` entries form one clause, all `from` entries one, each `when` its own. A rule without any matches every flow: it
/// has no clause.
fn convert_rule(rule: &crate::resources::Rule, namespace: &str) -> Rule {
    let mut clauses = Vec::new();
    if !rule.to.is_empty() {
        let matches = rule.to.iter().map(|to| Match {
            destination_ports: ports(&to.operation.ports),
            not_destination_ports: ports(&to.operation.not_ports),
            ..Match::default()
        });
        clauses.push(Clause {
            matches: matches.collect(),
        });
    }
    if !rule.from.is_empty() {
        let matches = rule.from.iter().map(|from| {
            let source = &from.source;
            Match {
                principals: strings(&source.principals),
                not_principals: strings(&source.not_principals),
                namespaces: strings(&source.namespaces),
                not_namespaces: strings(&source.not_namespaces),
                service_accounts: accounts(&source.service_accounts, namespace),
                not_service_accounts: accounts(&source.not_service_accounts, namespace),
                source_ips: addresses(&source.ip_blocks),
                not_source_ips: addresses(&source.not_ip_blocks),
                ..Match::default()
            }
        });
        clauses.push(Clause {
            matches: matches.collect(),
        });
    }
    clauses.extend(rule.when.iter().map(|when| Clause {
        matches: vec![condition(when, namespace)],
    }));
    Rule { clauses }
}

fn condition(when: &Condition, namespace: &str) -> Match {
    let (yes, no) = (&when.values, &when.not_values);
    let mut found = Match::default();
    match when.key.as_str() {
        "source.ip" => {
            found.source_ips = addresses(yes);
            found.not_source_ips = addresses(no);
        }
        "source.namespace" => {
            found.namespaces = strings(yes);
            found.not_namespaces = strings(no);
        }
        "source.principal" => {
            found.principals = strings(yes);
            found.not_principals = strings(no);
        }
        "source.serviceAccount" => {
            found.service_accounts = accounts(yes, namespace);
            found.not_service_accounts = accounts(no, namespace);
        }
        "destination.ip" => {
            found.destination_ips = addresses(yes);
            found.not_destination_ips = addresses(no);
        }
        "destination.port" => {
            found.destination_ports = ports(yes);
            found.not_destination_ports = ports(no);
        }
        // Refused when it was applied; an empty match never matches.
        _ => {}
    }
    found
}

fn ports(list: &[String]) -> Vec<u32> {
    list.iter().filter_map(|p| p.parse().ok()).collect()
}

fn addresses(list: &[String]) -> Vec<Address> {
    let ranges = list.iter().filter_map(|text| parse_range(text));
    ranges
        .map(|range| Address {
            address: bytes_of(range.network()),
            length: u32::from(range.prefix_len()),
        })
        .collect()
}

fn accounts(list: &[String], namespace: &str) -> Vec<ServiceAccountMatch> {
    let account = |text: &String| {
        let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
        ServiceAccountMatch {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
        }
    };
    list.iter().map(account).collect()
}

fn strings(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|text| string(text)).collect()
}

fn string(text: &str) -> StringMatch {
    let kind = if text == "*" {
        MatchType::Presence(())
    } else if let Some(suffix) = text.strip_prefix('*') {
        MatchType::Suffix(suffix.to_owned())
    } else if let Some(prefix) = text.strip_suffix('*') {
        MatchType::Prefix(prefix.to_owned())
    } else {
        MatchType::Exact(text.to_owned())
    };
    StringMatch { match_type: Some(kind) }
}

/// Matches a source without an identity.
pub(super) fn plaintext() -> security::Match {
    Match {
        not_principals: strings(&["*".to_owned()]),
        ..Match::default()
    }
}
