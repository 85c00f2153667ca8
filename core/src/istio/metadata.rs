//! The metadata of our xDS node: from it istiod makes our WorkloadEntry, and knows what we are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_proto::envoy::core::Locality;
use mesh_proto::wkt;
use serde_json::Value;

/// Who we are, and whether to be registered.
#[derive(Clone, Copy, Debug)]
pub struct Registration<'a> {
    /// Whether istiod keeps a WorkloadEntry of us while the stream lives: only a node that names its group is registered.
    pub registers: bool,
    /// Name of our WorkloadEntry.
    pub name: &'a str,
    pub namespace: &'a str,
    pub service_account: &'a str,
    pub group: &'a str,
    pub cluster_id: &'a str,
    pub network: &'a str,
    pub address: IpAddr,
    /// Of `mesh.yaml`.
    pub proxy_metadata: &'a BTreeMap<String, String>,
    /// Of `mesh.yaml`: JSON, or empty.
    pub readiness_probe: &'a str,
}

/// Everything of `mesh.yaml` that is meant for it (the names lose `ISTIO_META_` or `ISTIO_METAJSON_`), then what only we know.
///
/// The label `networking.istio.io/tunnel: http` says that we accept HBONE; istiod before 1.31 does not add it by itself.
pub fn metadata(of: &Registration<'_>) -> wkt::Struct {
    let mut fields = BTreeMap::new();
    for (name, value) in of.proxy_metadata {
        if let Some(name) = name.strip_prefix("ISTIO_METAJSON_") {
            // istiod would take a text where it expects an object for an error.
            if let Ok(json) = serde_json::from_str::<Value>(value) {
                fields.insert(name.to_owned(), json);
            }
        } else if let Some(name) = name.strip_prefix("ISTIO_META_") {
            fields.insert(name.to_owned(), Value::from(value.as_str()));
        }
    }
    let labels = fields
        .entry("LABELS".to_owned())
        .or_insert_with(|| Value::Object(Default::default()));
    if !labels.is_object() {
        *labels = Value::Object(Default::default());
    }
    if let Some(labels) = labels.as_object_mut() {
        labels.entry(TUNNEL_LABEL).or_insert_with(|| Value::from("http"));
        for (label, name) in CANONICAL {
            if let Some(value) = of.proxy_metadata.get(name).filter(|value| !value.is_empty()) {
                labels.entry(label).or_insert_with(|| Value::from(value.as_str()));
            }
        }
    }
    for (name, value) in [
        ("NAME", of.name),
        ("NAMESPACE", of.namespace),
        ("SERVICE_ACCOUNT", of.service_account),
        (GROUP, of.group),
        ("INSTANCE_IPS", &of.address.to_string()),
        ("NETWORK", of.network),
        ("CLUSTER_ID", of.cluster_id),
    ] {
        fields.insert(name.to_owned(), Value::from(value));
    }
    if !of.registers {
        fields.remove(GROUP);
    }
    fields
        .entry("WORKLOAD_NAME".to_owned())
        .or_insert_with(|| Value::from(of.group));
    if let Ok(probe) = serde_json::from_str::<Value>(of.readiness_probe) {
        fields.insert(
            "PROXY_CONFIG".to_owned(),
            serde_json::json!({ "readinessProbe": probe }),
        );
    }
    wkt::Struct {
        fields: fields.into_iter().map(|(name, json)| (name, value(json))).collect(),
    }
}

/// Where we are, by the label `istio-locality` of the WorkloadGroup (`region.zone.subzone`, or with slashes).
pub fn locality(proxy_metadata: &BTreeMap<String, String>) -> Option<Locality> {
    let labels: BTreeMap<String, Value> = serde_json::from_str(proxy_metadata.get("ISTIO_METAJSON_LABELS")?).ok()?;
    let label = labels.get("istio-locality")?.as_str()?;
    let separator = if label.contains('/') { '/' } else { '.' };
    let mut parts = label.splitn(3, separator).map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    Some(Locality {
        region: part(),
        zone: part(),
        sub_zone: part(),
    })
}

fn value(json: Value) -> wkt::Value {
    use wkt::value::Kind;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(bool) => Kind::BoolValue(bool),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(list) => Kind::ListValue(wkt::ListValue {
            values: list.into_iter().map(value).collect(),
        }),
        Value::Object(map) => Kind::StructValue(wkt::Struct {
            fields: map.into_iter().map(|(name, json)| (name, value(json))).collect(),
        }),
    };
    wkt::Value { kind: Some(kind) }
}

const GROUP: &str = "AUTO_REGISTER_GROUP";
const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";
/// Labels that istioctl derives, and under which name it also writes them.
const CANONICAL: [(&str, &str); 2] = [
    ("service.istio.io/canonical-name", "CANONICAL_SERVICE"),
    ("service.istio.io/canonical-revision", "CANONICAL_REVISION"),
];
