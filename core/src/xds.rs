//! The delta-xDS session: versions, nonces, ACK and NACK, as ztunnel speaks it.
//!
//! A session outlives streams. It keeps what was accepted in its encoded form: for `initial_resource_versions` on the next
//! stream, and for the disk. Rejection is per resource; a rejected address leaves the old one in place. A rejected policy
//! removes the old one, so that a workload that names it denies (docs/architecture.md); but one of a whole namespace, or of
//! all, stays as it was, for nobody names it and without it more would be allowed.

use std::collections::BTreeMap;

use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_proto::{rpc, type_url, wkt};

use crate::world::Delta;
use crate::world::convert::Names;

mod accept;
#[cfg(test)]
mod tests;

/// Most resources of one type that are held.
pub const MAX_RESOURCES: usize = 1_000_000;
/// Longest resource name, in bytes.
pub const MAX_NAME: usize = 1024;
/// Most rejected names that are remembered per type, and longest NACK message in bytes.
const MAX_REJECTED: usize = 1024;
const MAX_MESSAGE: usize = 4096;
/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// What one response led to.
#[derive(Debug)]
pub struct Handled {
    /// For [`crate::world::World::apply`].
    pub delta: Delta,
    /// ACK or NACK, to be sent.
    pub reply: DeltaDiscoveryRequest,
    /// (resource name, reason) of what was rejected.
    pub rejected: Vec<(String, String)>,
}

/// One session: outlives streams. See the module.
#[derive(Debug)]
pub struct Session {
    node: Node,
    types: Vec<TypeState>,
    names: Names,
}

#[derive(Debug)]
struct TypeState {
    type_url: &'static str,
    /// By resource name.
    held: BTreeMap<Box<str>, Held>,
    /// Name and reason of what is rejected now.
    rejected: BTreeMap<String, String>,
    synced: bool,
}

/// One accepted resource, as it came.
#[derive(Debug)]
struct Held {
    version: Box<str>,
    value: Box<[u8]>,
}

impl Session {
    /// Subscribes to all of each type.
    pub fn new(node: Node, types: &[&'static str]) -> Self {
        let state = |type_url: &&'static str| TypeState {
            type_url,
            held: BTreeMap::new(),
            rejected: BTreeMap::new(),
            synced: false,
        };
        Self {
            node,
            types: types.iter().map(state).collect(),
            names: Names::default(),
        }
    }

    /// Requests to be sent first on a new stream, with the versions of what is held.
    ///
    /// No name is subscribed, which is the legacy wildcard. Each request carries the node.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let node = &self.node;
        let request = |state: &TypeState| DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: state.type_url.to_owned(),
            initial_resource_versions: state
                .held
                .iter()
                .map(|(name, held)| (name.to_string(), held.version.to_string()))
                .collect(),
            ..Default::default()
        };
        self.types.iter().map(request).collect()
    }

    /// Takes one response.
    pub fn handle(&mut self, response: DeltaDiscoveryResponse) -> Handled {
        let mut reply = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        let Some(state) = self.types.iter_mut().find(|state| state.type_url == response.type_url) else {
            let reason = format!(
                "the type {:?} was not asked for",
                shortened(&response.type_url, MAX_NAME)
            );
            reply.error_detail = Some(status(reason));
            return Handled {
                delta: Delta::default(),
                reply,
                rejected: vec![],
            };
        };
        let mut delta = Delta::default();
        state.remove(response.removed_resources, &mut delta);
        let rejected = state.update(response.resources, &mut self.names, &mut delta);
        state.synced = true;
        mark_synced(state.type_url, &mut delta);
        if !rejected.is_empty() {
            reply.error_detail = Some(status(joined(&rejected)));
        }
        Handled { delta, reply, rejected }
    }

    /// Whether each type had a first response; a control plane that is older than probes says nothing of those.
    pub fn synced(&self) -> bool {
        let mut awaited = self.types.iter().filter(|state| state.type_url != type_url::PROBE);
        awaited.all(|state| state.synced)
    }

    /// What is rejected now: (type URL, resource name, reason).
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        let of = |state: &'_ TypeState| state.type_url;
        self.types.iter().flat_map(move |state| {
            state
                .rejected
                .iter()
                .map(move |(name, reason)| (of(state), name.as_str(), reason.as_str()))
        })
    }

    /// Everything held, per type, for the disk. A type that had neither a response nor a restored state is left out.
    pub fn snapshot(&self) -> Vec<(String, Vec<Resource>)> {
        let known = self.types.iter().filter(|state| state.synced || !state.held.is_empty());
        known
            .map(|state| {
                let resources = state
                    .held
                    .iter()
                    .map(|(name, held)| held.resource(state.type_url, name));
                (state.type_url.to_owned(), resources.collect())
            })
            .collect()
    }

    /// One accepted resource, as it came.
    pub fn held(&self, type_url: &str, name: &str) -> Option<Resource> {
        let state = self.types.iter().find(|state| state.type_url == type_url)?;
        Some(state.held.get(name)?.resource(type_url, name))
    }

    /// Starts from what was on disk; what is not readable is left out.
    pub fn restore(&mut self, types: Vec<(String, Vec<Resource>)>) -> Delta {
        let mut delta = Delta::default();
        for (type_url, resources) in types {
            let Some(state) = self.types.iter_mut().find(|state| state.type_url == type_url) else {
                continue;
            };
            state.update(resources, &mut self.names, &mut delta);
            mark_synced(state.type_url, &mut delta);
        }
        delta
    }
}

impl Held {
    fn resource(&self, type_url: &str, name: &str) -> Resource {
        Resource {
            version: self.version.to_string(),
            resource: Some(wkt::Any {
                type_url: type_url.to_owned(),
                value: self.value.to_vec(),
            }),
            name: name.to_owned(),
            aliases: vec![],
        }
    }
}

impl TypeState {
    fn remove(&mut self, names: Vec<String>, delta: &mut Delta) {
        for name in names {
            self.held.remove(name.as_str());
            self.rejected.remove(&name);
            match self.type_url {
                type_url::ADDRESS => delta.removed_addresses.push(name),
                type_url::AUTHORIZATION => delta.removed_policies.push(name),
                type_url::REVOCATION => delta.removed_revocations.push(name),
                type_url::PROBE => delta.removed_probe = true,
                _ => {} // Trust is replaced by the next bundle, never taken away.
            }
        }
    }

    fn update(&mut self, resources: Vec<Resource>, names: &mut Names, delta: &mut Delta) -> Vec<(String, String)> {
        let mut rejected = Vec::new();
        for resource in resources {
            let name = resource.name;
            let room = self.held.len() < MAX_RESOURCES || self.held.contains_key(name.as_str());
            let accepted = if room {
                accept::resource(self.type_url, &name, resource.resource, names, delta)
            } else {
                Err(format!("more than {MAX_RESOURCES} resources of one type"))
            };
            match accepted {
                Ok(value) => {
                    self.rejected.remove(&name);
                    let held = Held {
                        version: resource.version.into(),
                        value,
                    };
                    self.held.insert(name.into(), held);
                }
                Err(reason) => {
                    let name = shortened(&name, MAX_NAME).to_owned();
                    self.reject(&name, &reason, delta);
                    rejected.push((name, reason));
                }
            }
        }
        rejected
    }

    fn reject(&mut self, name: &str, reason: &str, delta: &mut Delta) {
        let held = self.held.get(name);
        if self.type_url == type_url::AUTHORIZATION && !held.is_some_and(|held| accept::is_unnamed_policy(&held.value))
        {
            self.held.remove(name);
            delta.policies.retain(|policy| &*policy.key != name);
            delta.removed_policies.push(name.to_owned());
        }
        if self.rejected.len() < MAX_REJECTED || self.rejected.contains_key(name) {
            self.rejected.insert(name.to_owned(), reason.to_owned());
        }
    }
}

fn mark_synced(type_url: &str, delta: &mut Delta) {
    delta.addresses_synced |= type_url == type_url::ADDRESS;
    delta.policies_synced |= type_url == type_url::AUTHORIZATION;
    delta.probe_synced |= type_url == type_url::PROBE;
}

fn status(message: String) -> rpc::Status {
    rpc::Status {
        code: INVALID_ARGUMENT,
        message,
        details: vec![],
    }
}

fn joined(rejected: &[(String, String)]) -> String {
    let mut message = String::new();
    for (name, reason) in rejected {
        if message.len() + name.len() + reason.len() > MAX_MESSAGE {
            message.push_str("; and more");
            break;
        }
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(name);
        message.push_str(": ");
        message.push_str(reason);
    }
    message
}

/// The longest head of `text` of at most `most` bytes.
fn shortened(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
