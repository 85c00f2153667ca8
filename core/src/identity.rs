//! SPIFFE identities of the shape that Istio uses: `spiffe://{trust domain}/ns/{namespace}/sa/{service account}`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Who a workload is. Compared exactly; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a string is not an [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an identity: {0:?} (expected spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT)")]
pub struct InvalidIdentity(String);

impl Identity {
    /// An identity from its parts, each of which must be non-empty and free of `/`.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidIdentity> {
        Self::shared(trust_domain.into(), namespace.into(), service_account.into())
    }

    /// As [`Identity::new`], from parts that are held elsewhere too.
    pub fn shared(
        trust_domain: Arc<str>,
        namespace: Arc<str>,
        service_account: Arc<str>,
    ) -> Result<Self, InvalidIdentity> {
        let fits = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic() && c != '/');
        let identity = Self {
            trust_domain,
            namespace,
            service_account,
        };
        if [&identity.trust_domain, &identity.namespace, &identity.service_account]
            .into_iter()
            .all(|part| fits(part))
        {
            return Ok(identity);
        }
        Err(InvalidIdentity(identity.to_string().chars().take(256).collect()))
    }

    /// The identity that only a control plane's server certificate carries, in a namespace that no WorkloadGroup may issue into.
    pub fn control_plane(trust_domain: &str) -> Result<Self, InvalidIdentity> {
        Self::new(trust_domain, CONTROL_NAMESPACE, CONTROL_SERVICE_ACCOUNT)
    }

    /// The trust domain, such as `mesh.internal`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The form that policies compare with: the URI without `spiffe://`.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

/// Namespace reserved for the control plane.
pub const CONTROL_NAMESPACE: &str = "mesh-system";
/// Service account of the control plane.
pub const CONTROL_SERVICE_ACCOUNT: &str = "mesh-control";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidIdentity(uri.chars().take(256).collect());
        let path = uri.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let mut parts = path.split('/');
        let parsed = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        );
        let (Some(td), Some("ns"), Some(ns), Some("sa"), Some(sa), None) = parsed else {
            return Err(invalid());
        };
        Self::new(td, ns, sa)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        let uri = "spiffe://mesh.internal/ns/shop/sa/orders";
        let identity: Identity = uri.parse().unwrap();
        assert_eq!(identity.to_string(), uri);
        assert_eq!(identity.principal(), "mesh.internal/ns/shop/sa/orders");
    }

    #[test]
    fn refuses_other_shapes() {
        for uri in [
            "",
            "spiffe://",
            "spiffe://td/ns/a",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "https://td/ns/a/sa/b",
            "spiffe://td/sa/a/ns/b",
            "spiffe://td/ns/a/sa/b c",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri:?}");
        }
    }
}
