//! The messages that mesh-agent speaks, and nothing else: generated from the .proto files beside this crate.
//!
//! The code in `gen/` is committed; `tests/generated.rs` checks that it is what the .proto files say. The feature
//! `grpc` adds clients and servers; without it the crate is bare messages, which is all that `mesh-core` takes.

#[allow(clippy::all, clippy::pedantic, clippy::nursery, unreachable_pub, rustdoc::all)]
#[path = "gen/mod.rs"]
mod generated;

/// What an agent keeps on disk (`mesh.snapshot`).
pub use generated::mesh::snapshot;
/// Our own: join, revocation, trust bundle, the operator's calls (`mesh.v1`).
pub use generated::mesh::v1 as mesh;

/// Delta ADS, the transport of xDS.
pub mod envoy {
    /// Who speaks on a stream (`envoy.config.core.v3`).
    pub use crate::generated::envoy::config::core::v3 as core;
    /// Requests, responses and the service (`envoy.service.discovery.v3`).
    pub use crate::generated::envoy::service::discovery::v3 as discovery;
}

/// What a gRPC probe asks (`grpc.health.v1`).
pub use generated::grpc::health::v1 as health;

/// Istio's own messages.
pub mod istio {
    /// Authorization policies for L4 (`istio.security`).
    pub use crate::generated::istio::security;
    /// The certificate service (`istio.v1.auth`).
    pub use crate::generated::istio::v1::auth as ca;
    /// Services and workloads, WDS (`istio.workload`).
    pub use crate::generated::istio::workload;
}

/// `google.rpc.Status`.
pub use generated::google::rpc;

/// Well-known protobuf types.
pub use prost_types as wkt;

/// Names of extensions of WDS records.
pub mod extension {
    /// On a workload: it speaks HBONE/3. Has no configuration.
    pub const HBONE3: &str = "mesh.v1.hbone3";
}

/// Type URLs of the xDS resources that we speak.
pub mod type_url {
    /// `istio.workload.Address`.
    pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    /// `istio.security.Authorization`.
    pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
    /// `mesh.v1.Revocation`.
    pub const REVOCATION: &str = "type.googleapis.com/mesh.v1.Revocation";
    /// `mesh.v1.TrustBundle`.
    pub const TRUST_BUNDLE: &str = "type.googleapis.com/mesh.v1.TrustBundle";
    /// `mesh.v1.Probe`.
    pub const PROBE: &str = "type.googleapis.com/mesh.v1.Probe";
    /// Not a resource: a request of this type says how the client's application is (Istio's `istio.v1.HealthInformation`).
    pub const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
}
