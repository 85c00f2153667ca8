//! The servers' TLS: version 1.3 only, no resumption (a resumed session would skip today's certificate check), and for agents
//! an optional client certificate that must chain to a current anchor when it is given.
//!
//! Our agents look for the reserved identity in the server's certificate; a ztunnel looks for the host that its URL names, so
//! the certificate is for every name and address of this machine too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::Identity;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::ca::{Authority, CaError};
use crate::config::Settings;
use crate::resources::check::is_host_or_wildcard;

/// Own addresses that go into the certificate; a machine with more names those that matter in `names`.
const ADDRESSES: usize = 64;

/// Both servers' configurations, made for one own certificate.
pub struct ServerTls {
    /// For agents: client certificate optional, but verified.
    pub agents: Arc<ServerConfig>,
    /// For operators: client certificates are not asked for.
    pub operators: Arc<ServerConfig>,
}

/// Issues the control plane's own certificate, with the reserved identity, and builds both configurations on it.
pub fn server(authority: &Authority, settings: &Settings) -> Result<ServerTls, CaError> {
    let invalid = |e: &dyn std::fmt::Display| CaError::Invalid(format!("the control plane's own certificate: {e}"));
    let identity = Identity::control_plane(&authority.trust_domain).map_err(|e| invalid(&e))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = authority.issue_with(
        &key.subject_public_key_info(),
        &identity,
        Duration::from_secs(settings.certificate_lifetime_seconds),
        &names(settings)?,
    )?;
    let chain = authority.server_chain(&leaf);
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));

    let mut roots = RootCertStore::empty();
    for anchor in &authority.anchors {
        roots.add(anchor.der.clone()).map_err(|e| invalid(&e))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| invalid(&e))?;
    let builder = || {
        ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| invalid(&e))
    };
    let agents = builder()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key());
    let operators = builder()?.with_no_client_auth().with_single_cert(chain, key());
    Ok(ServerTls {
        agents: finish(agents.map_err(|e| invalid(&e))?),
        operators: finish(operators.map_err(|e| invalid(&e))?),
    })
}

/// The names and addresses that the server's certificate is for: those of the settings, this host's name, and every address
/// that this machine has now (the certificate is renewed at half life, and takes in new ones then).
fn names(settings: &Settings) -> Result<Vec<SanType>, CaError> {
    let hosts = settings.addresses.iter().filter_map(|a| a.rsplit_once(':'));
    let hosts = hosts.map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
    let mut all: BTreeSet<String> = settings.names.iter().cloned().chain(hosts).collect();
    all.extend([crate::config::own_host_name(), "localhost".to_owned()]);
    all.insert(settings.listen.ip().to_string());
    all.extend(own_addresses().iter().map(IpAddr::to_string));
    let mut names = Vec::new();
    for text in all {
        match text.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() => {}
            Ok(address) => names.push(SanType::IpAddress(address)),
            Err(_) if is_host_or_wildcard(&text) => names.push(SanType::DnsName(text.try_into()?)),
            Err(_) => {}
        }
    }
    Ok(names)
}

/// Addresses of this machine's interfaces, but for link-local IPv6, which no URL can name.
fn own_addresses() -> BTreeSet<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return BTreeSet::new();
    };
    let storage = interfaces.filter_map(|interface| interface.address);
    let addresses = storage.filter_map(|a| {
        let v4 = a.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| a.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    });
    addresses
        .filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .take(ADDRESSES)
        .collect()
}

fn finish(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_certificate_is_for_names_and_addresses() {
        let settings = Settings {
            names: vec!["control.example".into(), "192.0.2.9".into()],
            addresses: vec!["mesh.example:15012".into(), "[2001:db8::1]:15012".into()],
            listen: "192.0.2.7:15012".parse().unwrap(),
            ..Settings::default()
        };
        let names = names(&settings).unwrap();
        for host in ["control.example", "mesh.example", "localhost"] {
            assert!(names.contains(&SanType::DnsName(host.try_into().unwrap())), "{host}");
        }
        for address in ["192.0.2.9", "2001:db8::1", "192.0.2.7", "127.0.0.1"] {
            assert!(
                names.contains(&SanType::IpAddress(address.parse().unwrap())),
                "{address}"
            );
        }
        let unspecified = Settings::default().listen.ip();
        assert!(
            !super::names(&Settings::default())
                .unwrap()
                .contains(&SanType::IpAddress(unspecified))
        );
    }
}
