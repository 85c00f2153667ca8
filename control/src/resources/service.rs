//! `v1` Service: selector and ports.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{Finding, port, unsupported};
use super::meta::{Labels, Meta};

/// `v1` Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says.
    pub spec: ServiceSpec,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

/// What a Service says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// WorkloadEntries of this namespace with all of these labels are its endpoints.
    pub selector: Labels,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `None` for a headless service; an address; absent means one is given automatically.
    #[serde(rename = "clusterIP", skip_serializing_if = "Option::is_none")]
    pub cluster_ip: Option<String>,
    /// Only `ClusterIP`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
    /// `Cluster` or `Local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<String>,
    /// Whether unhealthy endpoints are used too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub publish_not_ready_addresses: bool,
    #[serde(skip_serializing, rename = "clusterIPs")]
    cluster_ips: Option<Value>,
    #[serde(skip_serializing)]
    external_name: Option<Value>,
    #[serde(skip_serializing, rename = "externalIPs")]
    external_ips: Option<Value>,
    #[serde(skip_serializing)]
    session_affinity: Option<Value>,
    #[serde(skip_serializing)]
    ip_families: Option<Value>,
    #[serde(skip_serializing)]
    ip_family_policy: Option<Value>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    /// The service's port.
    pub port: u32,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` or `UDP`; absent means `TCP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The endpoint's port, by number or by the name of one of its ports; absent means `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    /// Such as `http` or `kubernetes.io/h2c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// By number.
    Number(u32),
    /// By the name of one of the endpoint's ports.
    Name(String),
}

impl Service {
    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        if spec.ports.is_empty() {
            findings.push(Finding::new("spec.ports", "a Service needs at least one port"));
        }
        for (i, p) in spec.ports.iter().enumerate() {
            port(p.port, &format!("spec.ports[{i}].port"), findings);
            if let Some(TargetPort::Number(n)) = &p.target_port {
                port(*n, &format!("spec.ports[{i}].targetPort"), findings);
            }
            if let Some(protocol) = p.protocol.as_deref()
                && !matches!(protocol, "TCP" | "UDP")
            {
                let message = format!("protocol {protocol:?} is not supported; use TCP or UDP");
                findings.push(Finding::new(format!("spec.ports[{i}].protocol"), message));
            }
        }
        self.check_addressing(findings);
        if let Some(d) = spec.traffic_distribution.as_deref()
            && !matches!(d, "PreferClose" | "PreferSameZone" | "PreferSameNode")
        {
            let message = format!("{d:?} is not PreferClose, PreferSameZone or PreferSameNode");
            findings.push(Finding::new("spec.trafficDistribution", message));
        }
        if let Some(p) = spec.internal_traffic_policy.as_deref()
            && !matches!(p, "Cluster" | "Local")
        {
            let message = format!("{p:?} is neither Cluster nor Local");
            findings.push(Finding::new("spec.internalTrafficPolicy", message));
        }
    }

    fn check_addressing(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        if let Some(kind) = spec.kind.as_deref()
            && kind != "ClusterIP"
        {
            let message = format!("type {kind:?} is not supported by mesh-control; use ClusterIP");
            findings.push(Finding::new("spec.type", message));
        }
        if let Some(ip) = spec.cluster_ip.as_deref()
            && !matches!(ip, "None" | "")
            && ip.parse::<std::net::IpAddr>().is_err()
        {
            let message = format!("{ip:?} is neither an IP address nor None");
            findings.push(Finding::new("spec.clusterIP", message));
        }
        unsupported(spec.cluster_ips.as_ref(), "spec.clusterIPs", "use clusterIP", findings);
        unsupported(
            spec.external_name.as_ref(),
            "spec.externalName",
            "use a ServiceEntry",
            findings,
        );
        unsupported(
            spec.external_ips.as_ref(),
            "spec.externalIPs",
            "use a ServiceEntry",
            findings,
        );
        unsupported(
            spec.session_affinity.as_ref(),
            "spec.sessionAffinity",
            "agents balance each flow by itself",
            findings,
        );
        let families = "automatic addresses are always of both families";
        unsupported(spec.ip_families.as_ref(), "spec.ipFamilies", families, findings);
        unsupported(
            spec.ip_family_policy.as_ref(),
            "spec.ipFamilyPolicy",
            families,
            findings,
        );
    }
}
