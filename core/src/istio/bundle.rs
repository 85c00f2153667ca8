//! The five files into one [`IstioBundle`], and whether that can be joined with.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{AUDIENCE, BundleError, IstioBundle, MAX_FILE, claims, env, fresh_bundle, mesh};
use crate::dns::lookup::in_hosts;
use crate::identity::Identity;
use crate::rotation::UnixTime;
use crate::token::{self, BootstrapToken};

/// What was found under each name; `None` where there is no file.
#[derive(Clone, Debug, Default)]
pub struct Files {
    pub cluster_env: Option<String>,
    pub mesh_yaml: Option<String>,
    pub root_cert: Option<String>,
    pub istio_token: Option<String>,
    pub hosts: Option<String>,
}

impl Files {
    /// Names of the files, in a bundle's directory.
    pub const NAMES: [&str; 5] = [CLUSTER_ENV, MESH_YAML, ROOT_CERT, ISTIO_TOKEN, HOSTS];

    /// Asks for each file by its name; `None` says that there is none.
    pub fn gather<E>(mut text: impl FnMut(&'static str) -> Result<Option<String>, E>) -> Result<Self, E> {
        let mut files = Self::default();
        for name in Self::NAMES {
            if let (Some(text), Some(slot)) = (text(name)?, files.slot(name)) {
                *slot = Some(text);
            }
        }
        Ok(files)
    }

    pub(super) fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            CLUSTER_ENV => &mut self.cluster_env,
            MESH_YAML => &mut self.mesh_yaml,
            ROOT_CERT => &mut self.root_cert,
            ISTIO_TOKEN => &mut self.istio_token,
            HOSTS => &mut self.hosts,
            _ => return None,
        })
    }
}

/// Reads a bundle. Gives `host:port` of istiod too, in the order to be tried: `istiod_address` alone when it is given, else
/// what `hosts` says, and then the name itself, which may be in DNS.
pub fn read(files: &Files, istiod_address: Option<&str>) -> Result<(Vec<String>, IstioBundle), BundleError> {
    let text = |file: &'static str, text: &Option<String>| match text {
        None => Err(BundleError::Missing(file)),
        Some(text) if text.len() > MAX_FILE => Err(BundleError::TooLong(file)),
        Some(text) => Ok(text.clone()),
    };
    let full = |file: &'static str, found: &Option<String>| {
        text(file, found).and_then(|text| {
            if text.trim().is_empty() {
                Err(BundleError::Empty(file))
            } else {
                Ok(text)
            }
        })
    };
    let env = env::parse(&full(CLUSTER_ENV, &files.cluster_env)?).map_err(|error| unreadable(CLUSTER_ENV, error))?;
    let config = mesh::parse(&full(MESH_YAML, &files.mesh_yaml)?).map_err(|error| unreadable(MESH_YAML, error))?;
    let anchors = certificates(&full(ROOT_CERT, &files.root_cert)?)?;
    let jwt = full(ISTIO_TOKEN, &files.istio_token)?.trim().to_owned();
    let hosts = text(HOSTS, &files.hosts)?;

    let metadata = config.proxy_metadata;
    let of = |name: &str| {
        metadata
            .get(name)
            .or_else(|| env.get(name))
            .cloned()
            .unwrap_or_default()
    };
    let discovery = discovery_address(&config.discovery_address, &env, &hosts);
    let (server_name, port) = host_and_port(&discovery)
        .ok_or_else(|| unreadable(MESH_YAML, format!("discoveryAddress {discovery:?} is not HOST:PORT")))?;
    let addresses = match istiod_address {
        Some(address) => vec![address.to_owned()],
        None => addresses(&hosts, server_name, port)?,
    };
    let bundle = IstioBundle {
        trust_domain: or(of("TRUST_DOMAIN"), "cluster.local"),
        namespace: env.get("ISTIO_NAMESPACE").cloned().unwrap_or_default(),
        service_account: or(of("SERVICE_ACCOUNT"), "default"),
        group: of("ISTIO_META_AUTO_REGISTER_GROUP"),
        cluster_id: of("ISTIO_META_CLUSTER_ID"),
        network: of("ISTIO_META_NETWORK"),
        server_name: server_name.to_owned(),
        anchors,
        jwt,
        readiness_probe: config
            .readiness_probe
            .map(|probe| probe.to_string())
            .unwrap_or_default(),
        address: env.get("ISTIO_SVC_IP").cloned().unwrap_or_default(),
        // The rest is for Envoy, and a token should be short.
        proxy_metadata: metadata
            .into_iter()
            .filter(|(name, _)| KEPT.iter().any(|kept| name.starts_with(kept)))
            .collect(),
    };
    Ok((addresses, bundle))
}

/// The token that stands for a bundle that is good at `now`.
pub fn pack(files: &Files, istiod_address: Option<&str>, now: UnixTime) -> Result<String, BundleError> {
    let (addresses, bundle) = read(files, istiod_address)?;
    check(&bundle, now)?;
    Ok(token::encode(&BootstrapToken {
        addresses,
        istio: Some(bundle),
        ..BootstrapToken::default()
    }))
}

/// Whether a bundle can be joined with at `now`: complete, its token not expired, and of the account that it is for.
pub fn check(bundle: &IstioBundle, now: UnixTime) -> Result<Identity, BundleError> {
    let incomplete = |file, what, hint| BundleError::Incomplete { file, what, hint };
    if bundle.namespace.is_empty() {
        return Err(incomplete(CLUSTER_ENV, "the namespace (ISTIO_NAMESPACE)", ""));
    }
    if bundle.group.is_empty() {
        return Err(incomplete(
            MESH_YAML,
            "the WorkloadGroup to register in (ISTIO_META_AUTO_REGISTER_GROUP)",
            " with --autoregister",
        ));
    }
    if bundle.anchors.is_empty() {
        return Err(BundleError::Empty(ROOT_CERT));
    }
    if !bundle.address.is_empty() && bundle.address.parse::<IpAddr>().is_err() {
        return Err(unreadable(
            CLUSTER_ENV,
            format!("ISTIO_SVC_IP {:?} is not an IP address", bundle.address),
        ));
    }
    let identity = Identity::new(&bundle.trust_domain, &bundle.namespace, &bundle.service_account)
        .map_err(|error| unreadable(CLUSTER_ENV, error))?;
    check_token(bundle, now)?;
    Ok(identity)
}

fn check_token(bundle: &IstioBundle, now: UnixTime) -> Result<(), BundleError> {
    let claims = claims(&bundle.jwt).map_err(|why| unreadable(ISTIO_TOKEN, why))?;
    let audience = claims.audience.list();
    if !audience.iter().any(|one| one == AUDIENCE) {
        return Err(BundleError::Audience(audience.to_vec()));
    }
    let expected = format!("system:serviceaccount:{}:{}", bundle.namespace, bundle.service_account);
    if claims.subject != expected {
        return Err(BundleError::Account {
            found: claims.subject,
            expected,
        });
    }
    match claims.expires {
        Some(expires) if expires <= now => Err(BundleError::Expired {
            seconds: now - expires,
            command: fresh_bundle(&bundle.namespace, &bundle.group, &bundle.cluster_id),
        }),
        _ => Ok(()),
    }
}

fn discovery_address(named: &str, env: &BTreeMap<String, String>, hosts: &str) -> String {
    let in_hosts = || {
        let host = hosts.lines().find_map(|line| line.split_whitespace().nth(1))?;
        Some(format!("{host}:15012"))
    };
    [named, env.get("CA_ADDR").map_or("", String::as_str)]
        .into_iter()
        .find(|address| !address.is_empty())
        .map(str::to_owned)
        .or_else(in_hosts)
        .unwrap_or_else(|| "istiod.istio-system.svc:15012".to_owned())
}

fn addresses(hosts: &str, server_name: &str, port: u16) -> Result<Vec<String>, BundleError> {
    let found = in_hosts(hosts, server_name);
    if found.is_empty() {
        if hosts.trim().is_empty() {
            return Err(BundleError::NoAddress);
        }
        let why = format!("it has no line for {server_name}, which is istiod's name in {MESH_YAML}");
        return Err(unreadable(HOSTS, why));
    }
    let mut addresses: Vec<_> = found
        .into_iter()
        .map(|ip| std::net::SocketAddr::new(ip, port).to_string())
        .collect();
    // The gateway's address may change; then the name can be given in /etc/hosts or in DNS.
    addresses.push(format!("{server_name}:{port}"));
    Ok(addresses)
}

fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}

/// Each certificate of a PEM file as DER; what is around them is left out.
fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, BundleError> {
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let mut found = Vec::new();
    let mut rest = pem;
    while let Some(start) = rest.find(begin) {
        let body = &rest[start + begin.len()..];
        let length = body
            .find(end)
            .ok_or_else(|| unreadable(ROOT_CERT, "a certificate is cut off"))?;
        let base64: String = body[..length].split_whitespace().collect();
        let der = STANDARD.decode(base64).ok().filter(|der| !der.is_empty());
        found.push(der.ok_or_else(|| unreadable(ROOT_CERT, "a certificate is damaged (not base64)"))?);
        rest = &body[length + end.len()..];
    }
    if found.is_empty() {
        return Err(unreadable(ROOT_CERT, "there is no PEM certificate in it"));
    }
    Ok(found)
}

/// PEM of a DER certificate.
pub fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

fn unreadable(file: &'static str, why: impl ToString) -> BundleError {
    BundleError::Unreadable {
        file,
        why: why.to_string(),
    }
}

const KEPT: [&str; 3] = ["ISTIO_META_", "ISTIO_METAJSON_", "CANONICAL_"];
const CLUSTER_ENV: &str = "cluster.env";
const MESH_YAML: &str = "mesh.yaml";
const ROOT_CERT: &str = "root-cert.pem";
const ISTIO_TOKEN: &str = "istio-token";
const HOSTS: &str = "hosts";
