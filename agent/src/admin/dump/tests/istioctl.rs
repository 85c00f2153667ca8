//! What istioctl reads of a dump, field by field (istio: istioctl/pkg/ztunnel). A field that is missing or of another type does
//! not deserialize; most are read by that alone.
#![allow(dead_code)]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ZtunnelWorkload {
    pub(super) uid: String,
    pub(super) workload_ips: Vec<String>,
    pub(super) waypoint: GatewayAddress,
    pub(super) network_gateway: GatewayAddress,
    pub(super) application_tunnel: GoApplicationTunnel,
    pub(super) protocol: String,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) workload_name: String,
    pub(super) workload_type: String,
    pub(super) canonical_name: String,
    pub(super) canonical_revision: String,
    pub(super) cluster_id: String,
    pub(super) trust_domain: String,
    pub(super) locality: GoLocality,
    pub(super) node: String,
    pub(super) network: String,
    pub(super) status: String,
    pub(super) hostname: String,
    pub(super) capacity: u32,
    pub(super) authorization_policies: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct GatewayAddress {
    pub(super) destination: String,
}

#[derive(Deserialize)]
pub(super) struct GoApplicationTunnel {
    pub(super) protocol: String,
    pub(super) port: Option<u16>,
}

#[derive(Deserialize)]
pub(super) struct GoLocality {
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) subzone: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ZtunnelService {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) hostname: String,
    pub(super) vips: Vec<String>,
    pub(super) cidr_vips: Vec<CidrVip>,
    pub(super) ports: BTreeMap<String, i64>,
    pub(super) load_balancer: GoLoadBalancer,
    pub(super) waypoint: GatewayAddress,
    pub(super) endpoints: BTreeMap<String, ZtunnelEndpoint>,
    pub(super) subject_alt_names: Vec<String>,
    pub(super) ip_families: String,
    pub(super) canonical: bool,
    pub(super) visibility: String,
}

#[derive(Deserialize)]
pub(super) struct CidrVip {
    pub(super) cidr: String,
    pub(super) network: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GoLoadBalancer {
    pub(super) mode: String,
    pub(super) routing_preferences: Vec<String>,
    pub(super) health_policy: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ZtunnelEndpoint {
    pub(super) workload_uid: String,
    pub(super) port: BTreeMap<u16, u16>,
}

#[derive(Deserialize)]
pub(super) struct ZtunnelPolicy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) scope: String,
    pub(super) action: String,
    pub(super) rules: Vec<Vec<Vec<Value>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyMatch {
    pub(super) namespaces: Vec<GoStringMatch>,
    pub(super) not_namespaces: Vec<GoStringMatch>,
    pub(super) principals: Vec<GoStringMatch>,
    pub(super) not_principals: Vec<GoStringMatch>,
    pub(super) source_ips: Vec<String>,
    pub(super) not_source_ips: Vec<String>,
    pub(super) destination_ips: Vec<String>,
    pub(super) not_destination_ips: Vec<String>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
    pub(super) service_accounts: Vec<ServiceAccountMatch>,
    pub(super) not_service_accounts: Vec<ServiceAccountMatch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct GoStringMatch {
    pub(super) exact: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) presence: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceAccountMatch {
    pub(super) namespace: String,
    pub(super) service_account: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CertsDump {
    pub(super) identity: String,
    pub(super) state: String,
    pub(super) cert_chain: Vec<Cert>,
    pub(super) root_certs: Vec<Cert>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cert {
    pub(super) pem: String,
    pub(super) serial_number: String,
    pub(super) valid_from: String,
    pub(super) expiration_time: String,
}

#[derive(Deserialize)]
pub(super) struct State {
    pub(super) state: String,
    pub(super) connections: Connections,
    pub(super) info: WorkloadInfo,
}

#[derive(Deserialize)]
pub(super) struct Connections {
    pub(super) inbound: Vec<Connection>,
    pub(super) outbound: Vec<Connection>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Connection {
    pub(super) src: String,
    pub(super) original_dst: String,
    pub(super) actual_dst: String,
    pub(super) protocol: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkloadInfo {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) trust_domain: String,
    pub(super) service_account: String,
}
