//! Gateway API's Gateway, of the one class that mesh-control knows: a waypoint.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{Finding, is_host, unsupported};
use super::meta::{Meta, Selector};

/// The class of waypoints.
const CLASS: &str = "istio-waypoint";
/// Where waypoints take HBONE.
pub const WAYPOINT_PORT: u32 = 15008;
/// Label of a Gateway: for what its waypoint takes traffic.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Annotation of a Gateway: how connections are handed to the application of a waypoint that is behind an agent or a ztunnel.
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";

/// `gateway.networking.k8s.io` Gateway: where a waypoint is reached, and who may use it. It is run by others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Gateway {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says.
    pub spec: GatewaySpec,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

/// What a Gateway says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Only `istio-waypoint`.
    pub gateway_class_name: String,
    /// One, of protocol `HBONE` on port 15008.
    pub listeners: Vec<Listener>,
    /// Where it is reached; absent means a service of its name in its namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<GatewayAddress>,
    #[serde(default, skip_serializing)]
    infrastructure: Option<Value>,
    #[serde(default, skip_serializing)]
    allowed_listeners: Option<Value>,
    #[serde(default, skip_serializing)]
    tls: Option<Value>,
}

/// A listener of a Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u32,
    /// Its protocol.
    pub protocol: String,
    /// Whose services and workloads may use it; absent means those of its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
    #[serde(default, skip_serializing)]
    hostname: Option<Value>,
    #[serde(default, skip_serializing)]
    tls: Option<Value>,
}

/// Whose services and workloads may use a waypoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllowedRoutes {
    /// By namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    #[serde(skip_serializing)]
    kinds: Option<Value>,
}

/// Namespaces that may use a waypoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteNamespaces {
    /// `Same` (the default), `All` or `Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// With `Selector`: labels of the Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// Where a Gateway is reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayAddress {
    /// `IPAddress` (the default) or `Hostname`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The address, or the host name of a service in the Gateway's namespace.
    pub value: String,
}

/// How a waypoint's application takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundBinding {
    /// With a PROXY protocol header.
    pub proxy: bool,
    /// On this port; 0 is the one that was asked for.
    pub port: u32,
}

impl GatewayAddress {
    /// Whether it is a host name.
    pub fn is_hostname(&self) -> bool {
        self.kind.as_deref() == Some("Hostname")
    }
}

impl Gateway {
    /// For what the waypoint takes traffic: `service` (the default), `workload`, `all` or `none`.
    pub fn waypoint_for(&self) -> &str {
        self.metadata.labels.get(WAYPOINT_FOR).map_or("service", String::as_str)
    }

    /// How its application takes connections, where its annotation says so.
    pub fn inbound_binding(&self) -> Option<InboundBinding> {
        let (protocol, port) = {
            let text = self.metadata.annotations.get(INBOUND_BINDING)?;
            text.split_once('/').unwrap_or((text, "0"))
        };
        let proxy = match protocol {
            "PROXY" => true,
            "NONE" => false,
            _ => return None,
        };
        let port: u16 = port.parse().ok()?;
        Some(InboundBinding {
            proxy,
            port: port.into(),
        })
    }

    /// Which namespaces may use it.
    pub fn allowed(&self) -> RouteNamespaces {
        let allowed = self.spec.listeners.first().and_then(|one| one.allowed_routes.as_ref());
        allowed.and_then(|routes| routes.namespaces.clone()).unwrap_or_default()
    }

    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        if spec.gateway_class_name != CLASS {
            let message = format!(
                "class {:?} is not supported by mesh-control; use {CLASS}",
                spec.gateway_class_name
            );
            findings.push(Finding::new("spec.gatewayClassName", message));
        }
        if !matches!(self.waypoint_for(), "service" | "workload" | "all" | "none") {
            let message = format!("{:?} is not service, workload, all or none", self.waypoint_for());
            findings.push(Finding::new(format!("metadata.labels.{WAYPOINT_FOR}"), message));
        }
        if let (Some(text), None) = (self.metadata.annotations.get(INBOUND_BINDING), self.inbound_binding()) {
            let message = format!("{text:?} is not PROXY, PROXY/PORT, NONE or NONE/PORT");
            findings.push(Finding::new(format!("metadata.annotations.{INBOUND_BINDING}"), message));
        }
        let elsewhere = "mesh-control does not run waypoints, it says where they are";
        unsupported(spec.infrastructure.as_ref(), "spec.infrastructure", elsewhere, findings);
        unsupported(
            spec.allowed_listeners.as_ref(),
            "spec.allowedListeners",
            elsewhere,
            findings,
        );
        unsupported(
            spec.tls.as_ref(),
            "spec.tls",
            "waypoints have the certificates of their identity",
            findings,
        );
        for (i, address) in spec.addresses.iter().enumerate() {
            address.check(&format!("spec.addresses[{i}]"), findings);
        }
        match spec.listeners.as_slice() {
            [one] => one.check("spec.listeners[0]", findings),
            _ => {
                let message = format!("a waypoint has one listener: protocol HBONE, port {WAYPOINT_PORT}");
                findings.push(Finding::new("spec.listeners", message));
            }
        }
    }
}

impl GatewayAddress {
    fn check(&self, path: &str, findings: &mut Vec<Finding>) {
        let value = &self.value;
        let wrong = match self.kind.as_deref() {
            None | Some("IPAddress") if value.parse::<IpAddr>().is_err() => {
                Some(format!("{value:?} is not an IP address"))
            }
            Some("Hostname") if !is_host(value) => Some(format!("{value:?} is not a host name")),
            None | Some("IPAddress" | "Hostname") => None,
            Some(kind) => {
                let message = format!("{kind:?} is not supported by mesh-control; use IPAddress or Hostname");
                findings.push(Finding::new(format!("{path}.type"), message));
                None
            }
        };
        findings.extend(wrong.map(|message| Finding::new(format!("{path}.value"), message)));
    }
}

impl Listener {
    fn check(&self, path: &str, findings: &mut Vec<Finding>) {
        if self.protocol != "HBONE" {
            let message = format!(
                "protocol {:?} is not supported by mesh-control; use HBONE",
                self.protocol
            );
            findings.push(Finding::new(format!("{path}.protocol"), message));
        }
        if self.port != WAYPOINT_PORT {
            let message = format!("waypoints take HBONE on port {WAYPOINT_PORT}");
            findings.push(Finding::new(format!("{path}.port"), message));
        }
        let hbone = "an HBONE listener has none";
        unsupported(self.hostname.as_ref(), &format!("{path}.hostname"), hbone, findings);
        unsupported(self.tls.as_ref(), &format!("{path}.tls"), hbone, findings);
        let Some(routes) = &self.allowed_routes else { return };
        let path = format!("{path}.allowedRoutes");
        let kinds = "services and workloads use a waypoint by their labels";
        unsupported(routes.kinds.as_ref(), &format!("{path}.kinds"), kinds, findings);
        let Some(namespaces) = &routes.namespaces else { return };
        match (namespaces.from.as_deref(), &namespaces.selector) {
            (None | Some("Same" | "All"), None) | (Some("Selector"), Some(_)) => {}
            (Some("Selector"), None) => {
                findings.push(Finding::new(
                    format!("{path}.namespaces"),
                    "from Selector needs a selector",
                ));
            }
            (None | Some("Same" | "All"), Some(_)) => {
                let message = "a selector needs from: Selector";
                findings.push(Finding::new(format!("{path}.namespaces.selector"), message));
            }
            (Some(from), _) => {
                let message = format!("{from:?} is not Same, All or Selector");
                findings.push(Finding::new(format!("{path}.namespaces.from"), message));
            }
        }
    }
}
