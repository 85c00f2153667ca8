//! One delta-ADS stream as a pure state machine: what it subscribed to, what it was sent, what it acknowledged.
//!
//! On demand a client names what it needs. As with istiod, who asks for a service gets the workloads behind it too, and a
//! dedicated ztunnel gets its own workload unasked, for which it waits without ever asking.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use super::Node;
use super::snapshot::{Snapshot, TypeSnapshot, XdsType};
use crate::derive::probe_name;

/// Names that one stream may ask for on demand; more is a fault or an attack.
const NAMES: usize = 100_000;
/// Sent responses whose acknowledgement is awaited; older ones are forgotten.
const AWAITED: usize = 64;

/// State of one stream.
#[derive(Default)]
pub struct Session {
    types: BTreeMap<XdsType, TypeState>,
    nonce: u64,
    client: Client,
}

/// What a stream's node says of the client.
#[derive(Default)]
struct Client {
    /// Names that its own workload may have.
    own: Vec<String>,
    /// Whether it waits for the very name that it asked for. ztunnel does, and an alias is never a resource's name: it is told
    /// that the alias, as a resource, is not there, after it was given what the alias stands for.
    by_name: bool,
    /// Name of the one probe that it is shown.
    probe: String,
}

#[derive(Default)]
struct TypeState {
    wildcard: bool,
    /// Asked for by name; `true` while an answer is owed.
    names: BTreeMap<String, bool>,
    /// Version of each resource that the client has.
    sent: BTreeMap<String, String>,
    /// The state that the client was brought up to; nothing new can be said of the same one.
    shown: Option<Arc<TypeSnapshot>>,
    /// Whether the next poll must look even at a state that was shown.
    asked: bool,
    answered: bool,
    awaited: VecDeque<(String, Arc<[String]>)>,
}

/// What a request acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    /// A response of this type was accepted; for the trust bundle, with these anchors.
    Yes(XdsType, Arc<[String]>),
    /// A response of this type was rejected, for this reason.
    No(XdsType, String),
}

impl Session {
    /// A new stream of this node, whose own workload has one of these names.
    pub fn of(node: &Node, own: Vec<String>) -> Self {
        Self {
            client: Client {
                own,
                by_name: !node.ours,
                probe: probe_name(&node.namespace, &node.group),
            },
            ..Self::default()
        }
    }

    /// Takes a request in. Types that we do not serve are ignored. Fails when the client asks for too much.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Option<Acknowledged>, &'static str> {
        let Some(xds_type) = XdsType::of(&request.type_url) else {
            return Ok(None);
        };
        let first = !self.types.contains_key(&xds_type);
        let state = self.types.entry(xds_type).or_default();
        if first {
            state.begin(request);
        } else {
            state.change(request);
        }
        if state.names.len() > NAMES {
            return Err("too many names are subscribed on one stream");
        }
        Ok(state.acknowledge(xds_type, request))
    }

    /// The next responses for this snapshot, in the order in which types are pushed; none when there is nothing to say.
    pub fn poll(&mut self, snapshot: &Snapshot) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for (xds_type, state) in &mut self.types {
            let only = (*xds_type == XdsType::Probe).then_some(&self.client.probe);
            let Some((resources, removed)) = state.difference(snapshot.of(*xds_type), &self.client, only) else {
                continue;
            };
            self.nonce += 1;
            let nonce = self.nonce.to_string();
            if state.awaited.len() == AWAITED {
                state.awaited.pop_front();
            }
            let anchors = match xds_type {
                XdsType::TrustBundle => snapshot.anchors.clone(),
                _ => Arc::default(),
            };
            state.awaited.push_back((nonce.clone(), anchors));
            responses.push(DeltaDiscoveryResponse {
                resources,
                type_url: xds_type.url().to_owned(),
                nonce,
                removed_resources: removed,
                ..DeltaDiscoveryResponse::default()
            });
        }
        responses
    }
}

impl TypeState {
    /// The first request: subscribing to nothing, or to `*`, means everything; `*` both ways means nothing yet.
    fn begin(&mut self, request: &DeltaDiscoveryRequest) {
        self.sent = request.initial_resource_versions.clone();
        self.wildcard = request.resource_names_subscribe.is_empty();
        self.change(request);
        // On demand, a client lists what it holds; it goes on being interested in those.
        if !self.wildcard {
            self.names.extend(self.sent.keys().map(|name| (name.clone(), false)));
        }
        self.asked = true;
    }

    fn change(&mut self, request: &DeltaDiscoveryRequest) {
        for name in &request.resource_names_subscribe {
            if name == "*" {
                self.wildcard = true;
            } else {
                self.names.insert(name.clone(), true);
            }
            self.asked = true;
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
            } else {
                self.names.remove(name);
                self.sent.remove(name);
            }
        }
    }

    /// What a client on demand is to have: what its names and aliases find, the workloads behind services, and its own workload.
    fn demanded<'a>(&self, now: &'a TypeSnapshot, client: &Client) -> BTreeSet<&'a String> {
        let names = self.names.keys().chain(&client.own);
        let mut wanted: BTreeSet<&String> = names.filter_map(|n| now.find(n)).map(|(name, _)| name).collect();
        let behind: Vec<_> = wanted.iter().filter_map(|name| now.members.get(*name)).collect();
        wanted.extend(behind.into_iter().flatten());
        wanted
    }

    fn acknowledge(&mut self, xds_type: XdsType, request: &DeltaDiscoveryRequest) -> Option<Acknowledged> {
        if request.response_nonce.is_empty() {
            return None;
        }
        let at = self
            .awaited
            .iter()
            .position(|(nonce, _)| *nonce == request.response_nonce)?;
        let (_, anchors) = self.awaited.remove(at)?;
        Some(match &request.error_detail {
            Some(status) => Acknowledged::No(xds_type, status.message.chars().take(1000).collect()),
            None => Acknowledged::Yes(xds_type, anchors),
        })
    }

    /// What the client lacks and what it must forget; `None` when there is nothing to say. The first answer always comes.
    fn difference(
        &mut self,
        now: &Arc<TypeSnapshot>,
        client: &Client,
        only: Option<&String>,
    ) -> Option<(Vec<Resource>, Vec<String>)> {
        let shown = self.shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, now));
        if shown && !self.asked {
            return None;
        }
        self.asked = false;
        self.shown = Some(now.clone());
        let mut wanted: BTreeSet<&String> = if self.wildcard {
            now.resources.keys().collect()
        } else {
            self.demanded(now, client)
        };
        wanted.retain(|name| only.is_none_or(|only| only == *name));
        let mut resources = Vec::new();
        for name in &wanted {
            let Some(entry) = now.resources.get(*name) else {
                continue;
            };
            let asked = !self.wildcard && asked_for(&self.names, name, &entry.aliases);
            if self.sent.get(*name) != Some(&entry.version) || asked {
                resources.push(Resource {
                    version: entry.version.clone(),
                    resource: Some(entry.any.clone()),
                    name: (*name).clone(),
                    aliases: entry.aliases.clone(),
                });
            }
        }
        let mut removed: Vec<String> = self.sent.keys().filter(|n| !wanted.contains(n)).cloned().collect();
        for (name, pending) in &mut self.names {
            // A name that finds nothing is answered as removed, once.
            let answered = now
                .find(name)
                .is_some_and(|(found, _)| !client.by_name || found == name);
            if *pending && !answered && !removed.contains(name) {
                removed.push(name.clone());
            }
            *pending = false;
        }
        for name in &removed {
            self.sent.remove(name);
        }
        for resource in &resources {
            self.sent.insert(resource.name.clone(), resource.version.clone());
        }
        let first = !std::mem::replace(&mut self.answered, true);
        (first || !resources.is_empty() || !removed.is_empty()).then_some((resources, removed))
    }
}

/// Whether an answer is owed for the resource, under its name or an alias, even when the client has this version.
fn asked_for(names: &BTreeMap<String, bool>, name: &str, aliases: &[String]) -> bool {
    let mut own = aliases.iter().map(String::as_str).chain([name]);
    own.any(|n| names.get(n) == Some(&true))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
