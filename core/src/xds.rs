//! The delta-xDS session: versions, nonces, ACK and NACK, as ztunnel speaks it (istio-wire section 1.6).
//!
//! A [`Session`] outlives streams: what it holds is told to the control plane on the next one, which then sends only what
//! changed. Rejection is per resource: the good ones of a response are applied.

use std::collections::BTreeMap;

use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_proto::istio::{security, workload as wds};
use mesh_proto::{mesh, rpc, type_url};
use prost::Message;

use crate::world::Delta;
use crate::world::convert::{self, Rejected};

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

/// One session. See the module.
#[derive(Debug)]
pub struct Session {
    node: Node,
    types: Vec<TypeState>,
}

#[derive(Debug)]
struct TypeState {
    url: &'static str,
    held: BTreeMap<String, Resource>,
    synced: bool,
    /// Rejected since, and why.
    rejected: BTreeMap<String, String>,
}

impl Session {
    /// Subscribes to all of each type.
    pub fn new(node: Node, types: &[&'static str]) -> Self {
        let state = |url: &&'static str| TypeState {
            url,
            held: BTreeMap::new(),
            synced: false,
            rejected: BTreeMap::new(),
        };
        Self {
            node,
            types: types.iter().map(state).collect(),
        }
    }

    /// Requests to be sent first on a new stream, with the versions of what is held.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let request = |state: &TypeState| DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: state.url.into(),
            initial_resource_versions: state
                .held
                .iter()
                .map(|(name, one)| (name.clone(), one.version.clone()))
                .collect(),
            ..Default::default()
        };
        self.types.iter().map(request).collect()
    }

    /// Takes one response.
    pub fn handle(&mut self, response: DeltaDiscoveryResponse) -> Handled {
        let mut delta = Delta::default();
        let mut reply = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        let Some(state) = self.types.iter_mut().find(|state| state.url == response.type_url) else {
            let rejected = vec![(response.type_url, "a type that was not asked for".to_owned())];
            reply.error_detail = Some(nack(&rejected));
            return Handled { delta, reply, rejected };
        };
        let mut rejected = Vec::new();
        for resource in response.resources {
            let name = resource.name.clone();
            if let Err(why) = state.take(resource, &mut delta) {
                rejected.push((name, why.to_string()));
            }
        }
        state.remove(response.removed_resources, &mut delta);
        state.synced = true;
        state.mark_synced(&mut delta);
        if !rejected.is_empty() {
            reply.error_detail = Some(nack(&rejected));
        }
        Handled { delta, reply, rejected }
    }

    /// Whether each type had a first response.
    pub fn synced(&self) -> bool {
        self.types.iter().all(|state| state.synced)
    }

    /// What stands rejected: (name, reason).
    pub fn rejected(&self) -> impl Iterator<Item = (&str, &str)> {
        self.types
            .iter()
            .flat_map(|state| state.rejected.iter().map(|(name, why)| (name.as_str(), why.as_str())))
    }

    /// Everything held, per type that had a response, for the disk.
    pub fn snapshot(&self) -> Vec<(String, Vec<Resource>)> {
        let synced = self.types.iter().filter(|state| state.synced);
        synced
            .map(|state| (state.url.to_owned(), state.held.values().cloned().collect()))
            .collect()
    }

    /// Starts from what was on disk; what is not readable is left out.
    pub fn restore(&mut self, types: Vec<(String, Vec<Resource>)>) -> Delta {
        let mut delta = Delta::default();
        for (url, resources) in types {
            let Some(state) = self.types.iter_mut().find(|state| state.url == url) else {
                continue;
            };
            for resource in resources {
                // It was accepted once; if this version cannot read it, the control plane sends it again.
                let _ = state.take(resource, &mut delta);
            }
            state.mark_synced(&mut delta);
        }
        delta
    }
}

impl TypeState {
    fn take(&mut self, resource: Resource, delta: &mut Delta) -> Result<(), Rejected> {
        let name = resource.name.clone();
        match decode(self.url, &resource, delta) {
            Ok(()) => {
                self.rejected.remove(&name);
                if self.held.len() < MAX_RESOURCES || self.held.contains_key(&name) {
                    self.held.insert(name, resource);
                }
                Ok(())
            }
            Err(why) => {
                // An older version of a policy must not stand for one that we cannot read: without it we deny.
                if self.url == type_url::AUTHORIZATION && self.held.remove(&name).is_some() {
                    delta.removed_policies.push(name.clone());
                }
                self.rejected.insert(name, why.to_string());
                Err(why)
            }
        }
    }

    fn remove(&mut self, names: Vec<String>, delta: &mut Delta) {
        for name in &names {
            self.held.remove(name);
            self.rejected.remove(name);
        }
        match self.url {
            type_url::ADDRESS => delta.removed_addresses.extend(names),
            type_url::AUTHORIZATION => delta.removed_policies.extend(names),
            type_url::REVOCATION => delta.removed_revocations.extend(names),
            _ => {}
        }
    }

    fn mark_synced(&self, delta: &mut Delta) {
        delta.addresses_synced |= self.url == type_url::ADDRESS;
        delta.policies_synced |= self.url == type_url::AUTHORIZATION;
    }
}

fn decode(url: &str, resource: &Resource, delta: &mut Delta) -> Result<(), Rejected> {
    let any = resource
        .resource
        .as_ref()
        .ok_or_else(|| convert::rejected("it is empty"))?;
    if any.type_url != url {
        return Err(convert::rejected(&format!("it is a {}", any.type_url)));
    }
    let value = any.value.as_slice();
    match url {
        type_url::ADDRESS => match parse::<wds::Address>(value)?.r#type {
            Some(wds::address::Type::Workload(workload)) => delta.workloads.push(convert::workload(workload)?),
            Some(wds::address::Type::Service(service)) => delta.services.push(convert::service(service)?),
            None => return Err(convert::rejected("neither a workload nor a service")),
        },
        type_url::AUTHORIZATION => {
            let policy = convert::policy(parse::<security::Authorization>(value)?)?;
            if *policy.key != *resource.name {
                return Err(convert::rejected(&format!("it is named {} inside", policy.key)));
            }
            delta.policies.push(policy);
        }
        type_url::REVOCATION => {
            let revocation = convert::revocation(parse::<mesh::Revocation>(value)?)?;
            delta.revocations.push((resource.name.clone(), revocation));
        }
        type_url::TRUST_BUNDLE => {
            let bundle = parse::<mesh::TrustBundle>(value)?;
            if bundle.anchors.is_empty() {
                return Err(convert::rejected("it has no anchor"));
            }
            delta.trust_bundle = Some((bundle.trust_domain, bundle.anchors));
        }
        _ => return Err(convert::rejected("a type that is not known")),
    }
    Ok(())
}

fn parse<M: Message + Default>(value: &[u8]) -> Result<M, Rejected> {
    M::decode(value).map_err(|error| convert::rejected(&error.to_string()))
}

fn nack(rejected: &[(String, String)]) -> rpc::Status {
    let named: Vec<_> = rejected
        .iter()
        .take(MAX_NAMED)
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    rpc::Status {
        code: INVALID_ARGUMENT,
        message: named.join("; "),
        details: Vec::new(),
    }
}

/// Resources of one type at the most.
const MAX_RESOURCES: usize = 2_000_000;
/// Rejected resources named in one NACK.
const MAX_NAMED: usize = 100;
const INVALID_ARGUMENT: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn resource(name: &str, version: &str, url: &str, message: &impl Message) -> Resource {
        let any = mesh_proto::wkt::Any {
            type_url: url.into(),
            value: message.encode_to_vec(),
        };
        Resource {
            name: name.into(),
            version: version.into(),
            resource: Some(any),
            aliases: Vec::new(),
        }
    }

    fn workload(uid: &str, tunnel: i32) -> Resource {
        let workload = wds::Workload {
            uid: uid.into(),
            name: uid.into(),
            namespace: "ns".into(),
            addresses: vec![vec![10, 0, 0, 1]],
            tunnel_protocol: tunnel,
            ..Default::default()
        };
        resource(
            uid,
            "v1",
            type_url::ADDRESS,
            &wds::Address {
                r#type: Some(wds::address::Type::Workload(workload)),
            },
        )
    }

    fn policy(name: &str, action: i32) -> Resource {
        let policy = security::Authorization {
            name: name.into(),
            namespace: "ns".into(),
            action,
            ..Default::default()
        };
        resource(&format!("ns/{name}"), "", type_url::AUTHORIZATION, &policy)
    }

    fn response(url: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            type_url: url.into(),
            nonce: "n".into(),
            resources,
            ..Default::default()
        }
    }

    #[test]
    fn the_good_ones_are_applied_and_the_bad_ones_named() {
        let mut session = Session::new(Node::default(), &[type_url::ADDRESS, type_url::AUTHORIZATION]);
        assert_eq!(session.connected().len(), 2);
        let handled = session.handle(response(
            type_url::ADDRESS,
            vec![workload("good", 1), workload("bad", 2)],
        ));
        let world = World::default().apply(handled.delta);
        assert!(world.workload("good").is_some() && world.workload("bad").is_none());
        assert!(
            handled
                .reply
                .error_detail
                .unwrap()
                .message
                .contains("bad: its tunnel protocol")
        );
        assert_eq!(handled.reply.response_nonce, "n");
        assert!(!session.synced());
        let handled = session.handle(response(type_url::AUTHORIZATION, vec![]));
        assert_eq!(handled.reply.error_detail, None);
        assert!(session.synced() && world.apply(handled.delta).policies_synced());
        // On the next stream only what was accepted is listed.
        let again = session.connected();
        assert_eq!(again[0].initial_resource_versions.keys().collect::<Vec<_>>(), ["good"]);
    }

    #[test]
    fn a_rejected_update_takes_the_old_policy_away() {
        let mut session = Session::new(Node::default(), &[type_url::AUTHORIZATION]);
        let world = World::default().apply(
            session
                .handle(response(type_url::AUTHORIZATION, vec![policy("p", 0)]))
                .delta,
        );
        assert!(world.policy("ns/p").is_some());
        let handled = session.handle(response(type_url::AUTHORIZATION, vec![policy("p", 7)]));
        assert_eq!(handled.rejected.len(), 1);
        assert!(world.apply(handled.delta).policy("ns/p").is_none());
        assert_eq!(session.rejected().next().unwrap().0, "ns/p");
    }

    #[test]
    fn a_snapshot_leads_to_the_same_world() {
        let mut session = Session::new(Node::default(), &[type_url::ADDRESS, type_url::AUTHORIZATION]);
        let _ = session.handle(response(type_url::ADDRESS, vec![workload("a", 1)]));
        let mut restored = Session::new(Node::default(), &[type_url::ADDRESS, type_url::AUTHORIZATION]);
        let world = World::default().apply(restored.restore(session.snapshot()));
        assert!(world.workload("a").is_some() && world.addresses_synced() && !world.policies_synced());
        assert_eq!(restored.connected()[0].initial_resource_versions.len(), 1);
    }

    #[test]
    fn unknown_types_are_refused() {
        let mut session = Session::new(Node::default(), &[type_url::ADDRESS]);
        assert!(
            session
                .handle(response("type.googleapis.com/x", vec![]))
                .reply
                .error_detail
                .is_some()
        );
    }
}
