//! Who speaks on a stream, by what its first message says of it.

use std::collections::BTreeMap;

use mesh_proto::envoy::core;
use mesh_proto::wkt::value::Kind;
use tonic::Code;

use crate::error::Refusal;

/// What is read from a stream's `node`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// WorkloadGroup to register in; empty when the stream does not ask for that.
    pub group: String,
    /// Claimed namespace.
    pub namespace: String,
    /// Claimed service account; empty when it claims none.
    pub service_account: String,
    /// Its workload's name; empty when it does not say.
    pub name: String,
    /// Its first address, as text; empty when it does not say.
    pub address: String,
    /// Network of its address.
    pub network: String,
    /// Random per process start; `node.id` when the client is not ours.
    pub instance: String,
    /// Whether the client is an agent of ours.
    pub ours: bool,
    /// For people.
    pub version: String,
    /// For people.
    pub hostname: String,
    /// Labels that it asks for.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`.
    pub locality: String,
}

/// Labels that one node may ask for.
const LABELS: usize = 64;
/// Longest text that is taken from a node, in bytes.
const TEXT: usize = 253;

impl Node {
    /// Reads the `node` of a first message.
    pub fn read(node: Option<&core::Node>) -> Result<Self, Refusal> {
        let invalid = |message: &str| Refusal::new(Code::InvalidArgument, "node-invalid", message);
        let node = node.ok_or_else(|| invalid("the first message of the stream has no node"))?;
        if node.id.split('~').count() != 4 {
            return Err(invalid("node.id must have four parts: TYPE~IP~NAME.NAMESPACE~DOMAIN"));
        }
        let fields = node.metadata.as_ref().map(|m| &m.fields);
        let text = |key: &str| match fields.and_then(|f| f.get(key)).and_then(|v| v.kind.as_ref()) {
            Some(Kind::StringValue(text)) if text.len() <= TEXT => text.clone(),
            _ => String::new(),
        };
        let labels = match fields.and_then(|f| f.get("LABELS")).and_then(|v| v.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => labels
                .fields
                .iter()
                .filter_map(|(key, value)| match &value.kind {
                    Some(Kind::StringValue(text)) if key.len() <= TEXT && text.len() <= TEXT => {
                        Some((key.clone(), text.clone()))
                    }
                    _ => None,
                })
                .take(LABELS)
                .collect(),
            _ => BTreeMap::new(),
        };
        let locality = node.locality.as_ref().map_or_else(String::new, |l| {
            let joined = format!("{}/{}/{}", l.region, l.zone, l.sub_zone);
            joined.trim_end_matches('/').chars().take(TEXT).collect()
        });
        let address = match text("INSTANCE_IPS") {
            list if list.is_empty() => node.id.split('~').nth(1).unwrap_or_default().to_owned(),
            list => list.split(',').next().unwrap_or_default().trim().to_owned(),
        };
        let instance = text("MESH_INSTANCE_ID");
        let ours = !instance.is_empty();
        Ok(Self {
            name: text("NAME"),
            address: address.chars().take(TEXT).collect(),
            instance: match ours {
                true => instance,
                false => node.id.chars().take(TEXT).collect(),
            },
            ours,
            group: text("AUTO_REGISTER_GROUP"),
            namespace: text("NAMESPACE"),
            service_account: text("SERVICE_ACCOUNT"),
            network: text("NETWORK"),
            version: text("MESH_AGENT_VERSION"),
            hostname: match ours {
                true => text("MESH_HOSTNAME"),
                false => text("NAME"),
            },
            labels,
            locality,
        })
    }
}
