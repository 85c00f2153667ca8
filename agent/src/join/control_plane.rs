//! Whose member we are: of mesh-control, or of istiod, which is met and asked in other ways.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use mesh_core::identity::Identity;
use mesh_core::istio;
use serde::{Deserialize, Serialize};

use super::Membership;
use crate::certs::root_store;
use crate::channel::{Server, Trust};

/// The kind of control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlPlane {
    #[default]
    MeshControl,
    Istiod(Istiod),
}

/// What istiod needs that mesh-control does not; of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Istiod {
    /// The DNS name that its certificate has.
    pub server_name: String,
    /// PEM anchors of its own certificate. Those of members come with each certificate of ours.
    pub anchors: Vec<String>,
    pub proxy_metadata: BTreeMap<String, String>,
    /// JSON; empty when the WorkloadGroup has no probe.
    pub readiness_probe: String,
}

impl Membership {
    /// What is kept for istiod, when it is our control plane.
    pub fn istiod(&self) -> Option<&Istiod> {
        match &self.control_plane {
            ControlPlane::MeshControl => None,
            ControlPlane::Istiod(istiod) => Some(istiod),
        }
    }

    /// Who we are.
    pub fn identity(&self) -> anyhow::Result<Identity> {
        Identity::new(&self.trust_domain, &self.namespace, &self.service_account)
            .context("membership.json names no identity; leave and join again")
    }

    /// Who must answer when the control plane is called, under these anchors of members.
    pub fn server(&self, anchors: &[String]) -> anyhow::Result<Server> {
        let Some(istiod) = self.istiod() else {
            return Ok(Server::MeshControl {
                trust_domain: self.trust_domain.clone(),
                trust: Trust::Roots(Arc::new(root_store(anchors)?)),
            });
        };
        // The mesh's root may have changed since the bundle was made, and istiod's own with it.
        let anchors = [istiod.anchors.as_slice(), anchors].concat();
        Ok(Server::Istiod {
            name: istiod.server_name.clone(),
            roots: Arc::new(root_store(&anchors)?),
        })
    }

    /// A call's message; with what istiod finds the cluster of a caller by.
    pub fn request<T>(&self, message: T) -> anyhow::Result<tonic::Request<T>> {
        let mut request = tonic::Request::new(message);
        if self.istiod().is_some() {
            name_cluster(&mut request, &self.cluster_id)?;
        }
        Ok(request)
    }

    /// The command that makes a fresh bundle, when nothing else helps: istiod gives no certificate to a machine whose last one
    /// is no longer good.
    pub fn needs_bundle(&self, not_after: SystemTime) -> Option<String> {
        let expired = not_after <= SystemTime::now();
        (expired && self.istiod().is_some())
            .then(|| istio::fresh_bundle(&self.namespace, &self.workload_group, &self.cluster_id))
    }
}

/// Which cluster's API server knows the caller's account.
pub(super) fn name_cluster<T>(request: &mut tonic::Request<T>, cluster: &str) -> anyhow::Result<()> {
    let cluster = cluster
        .parse()
        .with_context(|| format!("the cluster id {cluster:?} cannot be sent"))?;
    request.metadata_mut().insert("clusterid", cluster);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_of_before_there_was_a_choice_is_mesh_controls() {
        let old = r#"{"agent_id":"a","trust_domain":"mesh.internal","namespace":"shop","service_account":"web","workload_name":"web-1",
            "workload_group":"web","network":"","cluster_id":"c","dns_domain":"mesh.internal","address":"10.0.0.1",
            "control_addresses":["10.0.0.9:15012"],"ca_pins":["00"]}"#;
        let read: Membership = serde_json::from_str(old).unwrap();
        assert_eq!(read.control_plane, ControlPlane::MeshControl);
        assert_eq!(read.needs_bundle(SystemTime::UNIX_EPOCH), None);
        let again: Membership = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
        assert_eq!(again, read);
    }

    #[test]
    fn only_istiod_needs_a_bundle_and_only_after_the_end() {
        let member = Membership {
            agent_id: String::new(),
            trust_domain: "example.org".into(),
            namespace: "shop".into(),
            service_account: "orders".into(),
            workload_name: "orders-10.0.0.1".into(),
            workload_group: "orders".into(),
            network: String::new(),
            cluster_id: "c1".into(),
            dns_domain: String::new(),
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            control_addresses: Vec::new(),
            ca_pins: Vec::new(),
            control_plane: ControlPlane::Istiod(Istiod {
                server_name: "istiod.istio-system.svc".into(),
                anchors: Vec::new(),
                proxy_metadata: BTreeMap::new(),
                readiness_probe: String::new(),
            }),
        };
        let hour = std::time::Duration::from_secs(3600);
        assert_eq!(member.needs_bundle(SystemTime::now() + hour), None);
        let command = member.needs_bundle(SystemTime::now() - hour).unwrap();
        assert!(
            command.contains("--name orders --namespace shop --clusterID c1"),
            "{command}"
        );
    }
}
