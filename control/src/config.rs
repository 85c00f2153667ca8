//! Settings of `mesh-control serve`: built-in defaults, then a TOML file, then `MESH_CONTROL__KEY` from the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::resources::check::is_host_or_wildcard;

/// Everything that can be set. `docs` of each field give its default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where the store and the CA's keys live; `/var/lib/mesh-control`.
    pub data_dir: PathBuf,
    /// Agents' address: CA, join and xDS; `[::]:15012` (dual stack; `0.0.0.0:15012` where there is no IPv6).
    pub listen: SocketAddr,
    /// Operators' address, for calls with an operator token; `127.0.0.1:15080`.
    pub operator_listen: SocketAddr,
    /// Where `control.sock` and `addresses.json` go; `/run/mesh-control`.
    pub run_dir: PathBuf,
    /// `host:port` that tokens advertise; empty means this host's name and the port of `listen`.
    pub addresses: Vec<String>,
    /// Further names and addresses that the server's certificate is for, beside those of `addresses` and this machine's own.
    pub names: Vec<String>,
    /// The trust domain; `mesh.internal`.
    pub trust_domain: String,
    /// Services answer to `NAME.NS.{this}`; `mesh.internal`.
    pub dns_domain: String,
    /// How long a WorkloadEntry outlives its agent's stream; 10.
    pub grace_seconds: u64,
    /// Lifetime of issued certificates; 86400.
    pub certificate_lifetime_seconds: u64,
    /// The cluster's name in workload uids; `mesh`.
    pub cluster_id: String,
    /// A CA of one's own instead of the one made on first start.
    pub ca: Option<PluggedCa>,
    /// Issuers whose JWTs Istio's data planes may bring instead of a join.
    pub jwt: Vec<JwtIssuer>,
}

/// Whose JWTs are believed, and by which keys. Exactly one of `jwks_file` and `jwks_uri` is there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtIssuer {
    /// Claim `iss`.
    pub issuer: String,
    /// One of these must be in claim `aud`; `["istio-ca"]`.
    #[serde(default = "istio_ca")]
    pub audiences: Vec<String>,
    /// JSON Web Key Set in a file, read again every minute.
    pub jwks_file: Option<PathBuf>,
    /// JSON Web Key Set at an `https://` URL, fetched again as its `cache-control` says.
    pub jwks_uri: Option<String>,
    /// PEM certificates that the URL's server must chain to; absent means this machine's own trust store.
    pub jwks_ca: Option<PathBuf>,
}

fn istio_ca() -> Vec<String> {
    vec!["istio-ca".to_owned()]
}

impl JwtIssuer {
    fn check(&self) -> Result<(), ConfigError> {
        let value = |text: &str| Err(ConfigError::Value(format!("jwt issuer {:?}: {text}", self.issuer)));
        if self.issuer.is_empty() {
            return value("issuer is empty");
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return value("audiences must name at least one; without `audiences` it is \"istio-ca\"");
        }
        match (&self.jwks_file, &self.jwks_uri) {
            (Some(_), None) if self.jwks_ca.is_some() => value("jwks_ca belongs to jwks_uri"),
            (Some(_), None) => Ok(()),
            (None, Some(uri)) if uri.starts_with("https://") => Ok(()),
            (None, Some(_)) => value("jwks_uri must begin with https://"),
            _ => value("set one of jwks_file and jwks_uri"),
        }
    }
}

/// PEM files of an own CA.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluggedCa {
    /// The root certificates (anchors); one or more.
    pub root: PathBuf,
    /// The issuing certificate and its intermediates, leaf side first; absent when the root itself issues.
    pub chain: Option<PathBuf>,
    /// The issuing certificate's private key (PKCS#8).
    pub key: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/mesh-control".into(),
            listen: SocketAddr::from(([0u16; 8], 15012)),
            operator_listen: SocketAddr::from(([127, 0, 0, 1], 15080)),
            run_dir: "/run/mesh-control".into(),
            addresses: Vec::new(),
            names: Vec::new(),
            trust_domain: "mesh.internal".into(),
            dns_domain: "mesh.internal".into(),
            grace_seconds: 10,
            certificate_lifetime_seconds: 86_400,
            cluster_id: "mesh".into(),
            ca: None,
            jwt: Vec::new(),
        }
    }
}

/// Why the settings are unusable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing, not TOML, or has an unknown key.
    #[error("cannot read the configuration: {0}")]
    Read(#[from] config::ConfigError),
    /// A value that cannot work.
    #[error("configuration: {0}")]
    Value(String),
}

impl Settings {
    /// Reads the settings; a named file must exist.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut builder = config::Config::builder();
        if let Some(file) = file {
            builder = builder.add_source(config::File::from(file).format(config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix("MESH_CONTROL")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .list_separator(",")
            .with_list_parse_key("addresses")
            .with_list_parse_key("names");
        let settings: Self = builder.add_source(environment).build()?.try_deserialize()?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let value = |text: String| Err(ConfigError::Value(text));
        if mesh_core::identity::Identity::control_plane(&self.trust_domain).is_err() {
            return value(format!(
                "trust_domain {:?} cannot be part of a SPIFFE ID",
                self.trust_domain
            ));
        }
        if self.dns_domain.is_empty() || self.dns_domain.starts_with('.') {
            return value(format!("dns_domain {:?} is not a domain", self.dns_domain));
        }
        if !(10..=90 * 86_400).contains(&self.certificate_lifetime_seconds) {
            return value("certificate_lifetime_seconds must be between 10 and 7776000 (90 days)".into());
        }
        if let Some(bad) = self.addresses.iter().find(|a| !is_host_port(a)) {
            return value(format!("addresses: {bad:?} is not HOST:PORT"));
        }
        let is_name = |n: &&String| n.parse::<IpAddr>().is_ok() || is_host_or_wildcard(n);
        if let Some(bad) = self.names.iter().find(|n| !is_name(n)) {
            return value(format!("names: {bad:?} is neither a host name nor an IP address"));
        }
        for (i, issuer) in self.jwt.iter().enumerate() {
            issuer.check()?;
            if self.jwt[..i].iter().any(|other| other.issuer == issuer.issuer) {
                return value(format!("jwt issuer {:?} is there twice", issuer.issuer));
            }
        }
        Ok(())
    }

    /// What tokens advertise when `addresses` is empty: this host's name, and the port that is bound.
    pub fn advertised(&self, port: u16) -> Vec<String> {
        if !self.addresses.is_empty() {
            return self.addresses.clone();
        }
        vec![format!("{}:{port}", own_host_name())]
    }
}

/// This host's name.
pub fn own_host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// Whether `text` is `host:port` or `[v6]:port`.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host_fits = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(':') && !host.contains(char::is_whitespace),
    };
    host_fits && port.parse::<u16>().is_ok_and(|p| p != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_overrides_defaults_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "trust_domain = \"td.example\"\naddresses = [\"10.0.0.1:15012\"]\n",
        )
        .unwrap();
        let settings = Settings::load(Some(&file)).unwrap();
        assert_eq!(settings.trust_domain, "td.example");
        assert_eq!(settings.advertised(1), ["10.0.0.1:15012"]);
        assert_eq!(settings.grace_seconds, 10);
        std::fs::write(&file, "trust_domian = \"x\"\n").unwrap();
        assert!(
            Settings::load(Some(&file))
                .unwrap_err()
                .to_string()
                .contains("trust_domian")
        );
    }

    #[test]
    fn issuers_and_names_are_checked() {
        let load = |text: &str| {
            let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
            std::fs::write(file.path(), text).unwrap();
            Settings::load(Some(file.path())).map_err(|e| e.to_string())
        };
        let good =
            load("names = [\"*.example\", \"10.0.0.1\"]\n[[jwt]]\nissuer = \"a\"\njwks_file = \"/x\"\n").unwrap();
        assert_eq!(good.jwt[0].audiences, ["istio-ca"]);
        for (text, part) in [
            ("names = [\"a b\"]\n", "neither a host name"),
            ("[[jwt]]\nissuer = \"a\"\n", "set one of"),
            ("[[jwt]]\nissuer = \"a\"\njwks_uri = \"http://a\"\n", "https://"),
            (
                "[[jwt]]\nissuer = \"a\"\njwks_file = \"/x\"\njwks_ca = \"/y\"\n",
                "belongs to jwks_uri",
            ),
            (
                "[[jwt]]\nissuer = \"a\"\naudiences = []\njwks_file = \"/x\"\n",
                "audiences",
            ),
            (
                "[[jwt]]\nissuer = \"a\"\njwks_file = \"/x\"\n[[jwt]]\nissuer = \"a\"\njwks_file = \"/x\"\n",
                "twice",
            ),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn host_and_port() {
        for good in ["a:1", "10.0.0.1:15012", "[::1]:15012", "x.example:65535"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in ["a", ":1", "a:0", "::1:15012", "a b:1", "a:65536"] {
            assert!(!is_host_port(bad), "{bad}");
        }
    }
}
