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
