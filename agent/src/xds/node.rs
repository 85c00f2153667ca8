//! Who we say that we are, on a stream.

use mesh_core::istio::{Registration, locality, metadata};
use mesh_proto::envoy::core::Node;
use mesh_proto::wkt;

use crate::certs::random;
use crate::join::{Istiod, Membership, hostname};

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It brings the world. At mesh-control it registers us too.
    World,
    /// While it lives, istiod keeps our WorkloadEntry.
    Registration,
}

/// Who opens a stream for this purpose.
pub(super) fn node(membership: &Membership, purpose: Purpose) -> Node {
    let Membership {
        workload_name,
        namespace,
        address,
        ..
    } = membership;
    let mut node = Node {
        id: format!("ztunnel~{address}~{workload_name}.{namespace}~{namespace}.svc.cluster.local"),
        user_agent_name: "mesh-agent".into(),
        user_agent_version: env!("CARGO_PKG_VERSION").into(),
        ..Node::default()
    };
    match membership.istiod() {
        None => node.metadata = Some(for_mesh_control(membership)),
        Some(istiod) => {
            node.metadata = Some(for_istiod(membership, istiod, purpose));
            node.locality = locality(&istiod.proxy_metadata);
        }
    }
    node
}

fn for_istiod(membership: &Membership, istiod: &Istiod, purpose: Purpose) -> wkt::Struct {
    metadata(&Registration {
        registers: purpose == Purpose::Registration,
        name: &membership.workload_name,
        namespace: &membership.namespace,
        service_account: &membership.service_account,
        group: &membership.workload_group,
        cluster_id: &membership.cluster_id,
        network: &membership.network,
        address: membership.address,
        proxy_metadata: &istiod.proxy_metadata,
        readiness_probe: &istiod.readiness_probe,
    })
}

fn for_mesh_control(membership: &Membership) -> wkt::Struct {
    let text = |text: &str| wkt::Value {
        kind: Some(wkt::value::Kind::StringValue(text.into())),
    };
    let instance = format!("{:016x}", random());
    let fields = [
        ("NAME", membership.workload_name.as_str()),
        ("NAMESPACE", &membership.namespace),
        ("SERVICE_ACCOUNT", &membership.service_account),
        ("AUTO_REGISTER_GROUP", &membership.workload_group),
        ("INSTANCE_IPS", &membership.address.to_string()),
        ("NETWORK", &membership.network),
        ("CLUSTER_ID", &membership.cluster_id),
        ("MESH_AGENT_ID", &membership.agent_id),
        ("MESH_INSTANCE_ID", &instance),
        ("MESH_AGENT_VERSION", env!("CARGO_PKG_VERSION")),
        ("MESH_HOSTNAME", &hostname()),
    ]
    .map(|(name, value)| (name.to_owned(), text(value)));
    wkt::Struct {
        fields: fields.into_iter().collect(),
    }
}
