//! Policies (ztunnel: `rbac::Authorization`).

use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::policy::{self, Action, Scope};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    rules: Vec<Vec<Vec<Match<'a>>>>,
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Match<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<Account<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<Account<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
}

/// `{"Exact": "x"}` and so on; `{"Presence": []}`.
#[derive(Serialize)]
enum StringMatch<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Presence(),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Account<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

pub(super) fn of(one: &policy::Policy) -> Policy<'_> {
    Policy {
        name: &one.name,
        namespace: &one.namespace,
        scope: match one.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        action: match one.action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
        },
        rules: one
            .rules
            .iter()
            .map(|rule| {
                rule.iter()
                    .map(|clause| clause.iter().map(one_match).collect())
                    .collect()
            })
            .collect(),
        dry_run: one.dry_run,
    }
}

fn one_match(one: &policy::Match) -> Match<'_> {
    Match {
        namespaces: strings(&one.namespaces),
        not_namespaces: strings(&one.not_namespaces),
        service_accounts: accounts(&one.service_accounts),
        not_service_accounts: accounts(&one.not_service_accounts),
        principals: strings(&one.principals),
        not_principals: strings(&one.not_principals),
        source_ips: &one.source_ips,
        not_source_ips: &one.not_source_ips,
        destination_ips: &one.destination_ips,
        not_destination_ips: &one.not_destination_ips,
        destination_ports: &one.destination_ports,
        not_destination_ports: &one.not_destination_ports,
    }
}

fn strings(all: &[policy::StringMatch]) -> Vec<StringMatch<'_>> {
    all.iter()
        .map(|one| match one {
            policy::StringMatch::Exact(text) => StringMatch::Exact(text),
            policy::StringMatch::Prefix(text) => StringMatch::Prefix(text),
            policy::StringMatch::Suffix(text) => StringMatch::Suffix(text),
            policy::StringMatch::Presence => StringMatch::Presence(),
        })
        .collect()
}

fn accounts(all: &[(Arc<str>, Arc<str>)]) -> Vec<Account<'_>> {
    all.iter()
        .map(|(namespace, service_account)| Account {
            namespace,
            service_account,
        })
        .collect()
}
