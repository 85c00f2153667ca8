//! The current certificate: obtained, renewed at half life, published by a watch.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::Identity;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;

/// A certificate with its key and the anchors that peers are checked against. Immutable; a renewal publishes another.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub identity: Identity,
    pub key: Arc<CertifiedKey>,
    pub roots: Arc<RootCertStore>,
    /// PEM of the anchors, for `/config_dump` and the disk.
    pub root_pems: Vec<String>,
    /// Big-endian, no leading zeros.
    pub serial: Vec<u8>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}
