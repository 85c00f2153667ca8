//! Resources in Istio's and Kubernetes' own YAML: strict reading (an unknown or unsupported field is an error at its line),
//! checks of meaning, and the JSON that the store keeps.

pub mod check;
mod gateway;
mod kind;
mod meta;
mod namespace;
mod networking;
mod position;
mod security;
mod service;

pub use gateway::{Gateway, InboundBinding, RouteNamespaces, WAYPOINT_PORT};
pub use kind::Kind;
pub use meta::{Labels, Meta, Selector};
pub use namespace::Namespace;
pub use networking::{
    Endpoint, EntryTemplate, HBONE3, ServiceEntry, ServiceEntryPort, ServiceEntrySpec, WorkloadEntry, WorkloadGroup,
    WorkloadGroupSpec,
};
pub use security::{
    AuthorizationPolicy, Condition, From as FromClause, MutualTls, Operation, PeerAuthentication, Rule, Source,
    To as ToClause,
};
pub use service::{Service, ServicePort, ServiceSpec, TargetPort};

use check::Finding;
use mesh_proto::mesh::{Problem, SourceDocument};
use serde::{Deserialize, Serialize};

use crate::store::ResourceKey;

/// A resource of any kind that we take.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// `networking.istio.io` WorkloadGroup.
    WorkloadGroup(WorkloadGroup),
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry(WorkloadEntry),
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry(ServiceEntry),
    /// `v1` Service.
    Service(Service),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
    /// `gateway.networking.k8s.io` Gateway.
    Gateway(Gateway),
    /// `v1` Namespace.
    Namespace(Namespace),
}

/// The part that tells which kind to read; the rest is ignored here and read strictly afterwards.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
}

/// Longest document that is read, in bytes.
const LONGEST_DOCUMENT: usize = 1 << 20;

impl Resource {
    /// Reads one document. `None` when it holds nothing but comments.
    pub fn parse(document: &SourceDocument) -> Result<Option<Self>, Vec<Problem>> {
        let places = position::Places::of(&document.yaml);
        let problem = |finding: &Finding| places.problem(document, finding);
        if document.yaml.len() > LONGEST_DOCUMENT {
            return Err(vec![problem(&Finding::new(
                "",
                "the document is longer than 1 MiB; split it",
            ))]);
        }
        if places.is_empty() && places.error().is_none() {
            return Ok(None);
        }
        let head: Head = read(&document.yaml).map_err(|e| vec![places.serde_problem(document, &e)])?;
        let kind = Kind::of(head.api_version.as_deref(), head.kind.as_deref()).map_err(|f| vec![problem(&f)])?;
        let mut resource =
            Self::read(kind, &document.yaml).map_err(|error| vec![places.serde_problem(document, &error)])?;
        if let Self::WorkloadEntry(entry) = &mut resource {
            // Of another cluster, perhaps; what is true here is for us to note.
            entry.status = None;
        }
        let findings = resource.check();
        if findings.is_empty() {
            return Ok(Some(resource));
        }
        Err(findings.iter().map(problem).collect())
    }

    /// Reads the JSON that the store keeps.
    pub fn from_json(kind: Kind, json: &str) -> Result<Self, serde_json::Error> {
        Ok(match kind {
            Kind::WorkloadGroup => Self::WorkloadGroup(serde_json::from_str(json)?),
            Kind::WorkloadEntry => Self::WorkloadEntry(serde_json::from_str(json)?),
            Kind::ServiceEntry => Self::ServiceEntry(serde_json::from_str(json)?),
            Kind::Service => Self::Service(serde_json::from_str(json)?),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(serde_json::from_str(json)?),
            Kind::PeerAuthentication => Self::PeerAuthentication(serde_json::from_str(json)?),
            Kind::Gateway => Self::Gateway(serde_json::from_str(json)?),
            Kind::Namespace => Self::Namespace(serde_json::from_str(json)?),
        })
    }

    /// The JSON that the store keeps.
    pub fn to_json(&self) -> String {
        fn json<T: Serialize>(value: &T) -> String {
            serde_json::to_string(value).unwrap_or_default()
        }
        match self {
            Self::WorkloadGroup(r) => json(r),
            Self::WorkloadEntry(r) => json(r),
            Self::ServiceEntry(r) => json(r),
            Self::Service(r) => json(r),
            Self::AuthorizationPolicy(r) => json(r),
            Self::PeerAuthentication(r) => json(r),
            Self::Gateway(r) => json(r),
            Self::Namespace(r) => json(r),
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::WorkloadGroup(_) => Kind::WorkloadGroup,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::Service(_) => Kind::Service,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::Gateway(_) => Kind::Gateway,
            Self::Namespace(_) => Kind::Namespace,
        }
    }

    /// Name, namespace, labels, annotations.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::WorkloadGroup(r) => &r.metadata,
            Self::WorkloadEntry(r) => &r.metadata,
            Self::ServiceEntry(r) => &r.metadata,
            Self::Service(r) => &r.metadata,
            Self::AuthorizationPolicy(r) => &r.metadata,
            Self::PeerAuthentication(r) => &r.metadata,
            Self::Gateway(r) => &r.metadata,
            Self::Namespace(r) => &r.metadata,
        }
    }

    /// As it was written.
    pub fn api_version(&self) -> &str {
        match self {
            Self::WorkloadGroup(r) => &r.api_version,
            Self::WorkloadEntry(r) => &r.api_version,
            Self::ServiceEntry(r) => &r.api_version,
            Self::Service(r) => &r.api_version,
            Self::AuthorizationPolicy(r) => &r.api_version,
            Self::PeerAuthentication(r) => &r.api_version,
            Self::Gateway(r) => &r.api_version,
            Self::Namespace(r) => &r.api_version,
        }
    }

    /// Where the store keeps it.
    pub fn key(&self) -> ResourceKey {
        ResourceKey {
            kind: self.kind().as_str().to_owned(),
            namespace: self.meta().namespace.clone(),
            name: self.meta().name.clone(),
        }
    }

    fn read(kind: Kind, yaml: &str) -> Result<Self, serde_saphyr::Error> {
        Ok(match kind {
            Kind::WorkloadGroup => Self::WorkloadGroup(read(yaml)?),
            Kind::WorkloadEntry => Self::WorkloadEntry(read(yaml)?),
            Kind::ServiceEntry => Self::ServiceEntry(read(yaml)?),
            Kind::Service => Self::Service(read(yaml)?),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(read(yaml)?),
            Kind::PeerAuthentication => Self::PeerAuthentication(read(yaml)?),
            Kind::Gateway => Self::Gateway(read(yaml)?),
            Kind::Namespace => Self::Namespace(read(yaml)?),
        })
    }

    /// Checks the meaning; each finding names its field.
    fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        if !matches!(self, Self::Namespace(_)) {
            self.meta().check(&mut findings);
        }
        match self {
            Self::WorkloadGroup(r) => r.check(&mut findings),
            Self::WorkloadEntry(r) => r.check(&mut findings),
            Self::ServiceEntry(r) => r.check(&mut findings),
            Self::Service(r) => r.check(&mut findings),
            Self::AuthorizationPolicy(r) => r.check(&mut findings),
            Self::PeerAuthentication(r) => r.check(&mut findings),
            Self::Gateway(r) => r.check(&mut findings),
            Self::Namespace(r) => r.check(&mut findings),
        }
        findings
    }
}

fn read<T: for<'de> Deserialize<'de>>(yaml: &str) -> Result<T, serde_saphyr::Error> {
    serde_saphyr::from_str(yaml)
}

#[cfg(test)]
mod tests;
