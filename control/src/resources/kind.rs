//! The kinds that we take: their API versions, and the names that people type for them.

use super::check::Finding;

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A template for machines, and their identity.
    WorkloadGroup,
    /// One machine.
    WorkloadEntry,
    /// A service by host names.
    ServiceEntry,
    /// A service as Kubernetes has it.
    Service,
    /// Who may speak with whom.
    AuthorizationPolicy,
    /// Whether plaintext is let in.
    PeerAuthentication,
    /// Where a waypoint is.
    Gateway,
    /// Labels of a namespace.
    Namespace,
}

const NETWORKING: &[&str] = &[
    "networking.istio.io/v1",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1alpha3",
];
const GATEWAY: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];

impl Kind {
    /// Whether resources of the kind are in a namespace.
    pub fn is_namespaced(self) -> bool {
        self != Self::Namespace
    }

    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::WorkloadGroup,
        Self::WorkloadEntry,
        Self::ServiceEntry,
        Self::Service,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::Gateway,
        Self::Namespace,
    ];

    /// As `kind:` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WorkloadGroup => "WorkloadGroup",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::ServiceEntry => "ServiceEntry",
            Self::Service => "Service",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::Gateway => "Gateway",
            Self::Namespace => "Namespace",
        }
    }

    /// The kind that a person means: singular or plural, any case, or a short name.
    pub fn find(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "workloadgroup" | "workloadgroups" | "wg" => Self::WorkloadGroup,
            "workloadentry" | "workloadentries" | "we" | "wle" => Self::WorkloadEntry,
            "serviceentry" | "serviceentries" | "se" => Self::ServiceEntry,
            "service" | "services" | "svc" => Self::Service,
            "authorizationpolicy" | "authorizationpolicies" | "ap" => Self::AuthorizationPolicy,
            "peerauthentication" | "peerauthentications" | "pa" => Self::PeerAuthentication,
            "gateway" | "gateways" | "gtw" => Self::Gateway,
            "namespace" | "namespaces" | "ns" => Self::Namespace,
            _ => return None,
        })
    }

    /// The kind of a document by its `apiVersion` and `kind`.
    pub(super) fn of(api_version: Option<&str>, kind: Option<&str>) -> Result<Self, Finding> {
        let kind = kind.ok_or_else(|| Finding::new("", "the document has no `kind`"))?;
        let api_version = api_version.ok_or_else(|| Finding::new("", "the document has no `apiVersion`"))?;
        let Some(found) = Self::ALL.into_iter().find(|k| k.as_str() == kind) else {
            let known: Vec<_> = Self::ALL.iter().map(|k| k.as_str()).collect();
            let message = format!("kind {kind:?} is not supported; supported are {}", known.join(", "));
            return Err(Finding::new("kind", message));
        };
        let versions = found.api_versions();
        if versions.contains(&api_version) {
            return Ok(found);
        }
        let message = format!(
            "{kind} has no apiVersion {api_version:?}; use {}",
            versions.join(" or ")
        );
        Err(Finding::new("apiVersion", message))
    }

    fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::WorkloadGroup | Self::WorkloadEntry | Self::ServiceEntry => NETWORKING,
            Self::Service | Self::Namespace => &["v1"],
            Self::Gateway => GATEWAY,
            Self::AuthorizationPolicy | Self::PeerAuthentication => SECURITY,
        }
    }
}
