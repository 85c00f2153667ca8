//! `mesh.yaml`: of the proxy's configuration, the parts that istiod wants back, and where istiod is.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_config: Option<Config>,
}

/// The part that is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    /// `host:port` of istiod, as its certificate names it.
    pub(super) discovery_address: String,
    pub(super) proxy_metadata: BTreeMap<String, String>,
    pub(super) readiness_probe: Option<serde_json::Value>,
}

pub(super) fn parse(text: &str) -> Result<Config, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().to_owned()
    })?;
    file.default_config
        .ok_or_else(|| "there is no defaultConfig".to_owned())
}
