//! Whether a policy's rules match the facts of a connection (as ztunnel does it, with its odd corners).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Connection, Match, Policy, StringMatch};
use crate::identity::Identity;

/// A connection in the form that matches compare: addresses in their shortest form, the principal printed once.
pub(super) struct Facts<'a> {
    identity: Option<&'a Identity>,
    principal: Option<String>,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
}

impl<'a> Facts<'a> {
    pub(super) fn of(connection: &'a Connection) -> Self {
        Self {
            identity: connection.identity.as_ref(),
            principal: connection.identity.as_ref().map(Identity::principal),
            source: connection.source.ip().to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            port: connection.destination.port(),
        }
    }

    pub(super) fn plaintext(source: IpAddr, destination: IpAddr, port: u16) -> Self {
        Self {
            identity: None,
            principal: None,
            source: source.to_canonical(),
            destination: destination.to_canonical(),
            port,
        }
    }
}

impl Policy {
    /// Rules are ORed: none at all matches nothing.
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.rules
            .iter()
            .any(|clauses| clauses.iter().all(|matches| clause_matches(matches, facts)))
    }
}

/// Matches of a clause are ORed, but a clause without any holds.
fn clause_matches(matches: &[Match], facts: &Facts<'_>) -> bool {
    matches.is_empty() || matches.iter().any(|one| one.holds(facts))
}

impl Match {
    /// Kinds of fields are ANDed; a match without any field never holds.
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let namespace = facts.identity.map_or("", Identity::namespace);
        let principal = |entry: &StringMatch| facts.principal.as_deref().is_some_and(|text| entry.holds(text));
        !self.is_empty()
            && pair(&self.namespaces, &self.not_namespaces, |entry| entry.holds(namespace))
            && pair(&self.principals, &self.not_principals, principal)
            && pair(&self.service_accounts, &self.not_service_accounts, |entry| {
                facts.runs_as(entry)
            })
            && pair(&self.source_ips, &self.not_source_ips, |range| {
                contains(range, facts.source)
            })
            && pair(&self.destination_ips, &self.not_destination_ips, |range| {
                contains(range, facts.destination)
            })
            && pair(&self.destination_ports, &self.not_destination_ports, |port| {
                *port == facts.port
            })
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Facts<'_> {
    fn runs_as(&self, (namespace, service_account): &(Arc<str>, Arc<str>)) -> bool {
        self.identity.is_some_and(|identity| {
            identity.namespace() == &**namespace && identity.service_account() == &**service_account
        })
    }
}

impl StringMatch {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// One kind of field: the positive list is empty or any of it hits, and none of the negative one does.
fn pair<T>(positive: &[T], negative: &[T], hits: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&hits)) && !negative.iter().any(&hits)
}

fn contains(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address)
}
