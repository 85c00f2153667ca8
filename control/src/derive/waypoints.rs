//! Which waypoint takes the traffic of a service or workload: by label of itself, else of its namespace, as istiod has it.
//!
//! A waypoint that cannot be used is none: traffic goes direct, as with istiod, and the object's status says so.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_proto::istio::workload::application_tunnel::Protocol;
use mesh_proto::istio::workload::gateway_address::Destination;
use mesh_proto::istio::workload::{ApplicationTunnel, GatewayAddress};

use super::gateways::address_of;
use super::{Input, Sorted, bytes_of};
use crate::resources::{Gateway, Labels, Meta};

/// Label of an object or a Namespace: the Gateway whose waypoint takes its traffic, or `none`.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label of a waypoint's machines: the name of its Gateway, which is in their namespace.
const INSTANCE_OF: &str = "gateway.networking.k8s.io/gateway-name";
/// Label that Istio gives to the services of what it deploys: with these values, of waypoints and gateways of networks.
const MANAGED: &str = "gateway.istio.io/managed";
const MANAGED_BY_MESH: [&str; 2] = ["istio.io-mesh-controller", "istio.io-eastwest-controller"];

/// The waypoint of an object, if any, or why the one that it asks for is not used.
pub(super) type Binding = Result<Option<Bound>, Unbound>;

/// The waypoint of an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bound {
    /// `namespace/name` of the Gateway.
    pub(super) name: String,
    pub(super) address: GatewayAddress,
}

/// Why a waypoint is not used, in Istio's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unbound {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What a waypoint is asked to take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Traffic {
    Service,
    Workload,
}

/// A Gateway that has an address.
struct Waypoint<'a> {
    gateway: &'a Gateway,
    address: GatewayAddress,
}

/// All waypoints, and the labels of namespaces.
pub(super) struct Waypoints<'a> {
    /// By `namespace/name`.
    ready: BTreeMap<String, Waypoint<'a>>,
    namespaces: BTreeMap<&'a str, &'a Labels>,
}

impl<'a> Waypoints<'a> {
    pub(super) fn of(input: &Input<'_>, sorted: &Sorted<'a>) -> Self {
        let waypoint = |gateway: &&'a Gateway| {
            let (gateway, meta) = (*gateway, &gateway.metadata);
            let address = address_of(input, sorted, gateway)?;
            Some((full_name(&meta.namespace, &meta.name), Waypoint { gateway, address }))
        };
        let namespaces = sorted.namespaces.iter();
        Self {
            ready: sorted.gateways.iter().filter_map(waypoint).collect(),
            namespaces: namespaces
                .map(|one| (one.metadata.name.as_str(), &one.metadata.labels))
                .collect(),
        }
    }

    /// Where a Gateway is reached; nothing when that is not known.
    pub(super) fn address(&self, gateway: &Gateway) -> Option<&GatewayAddress> {
        let name = full_name(&gateway.metadata.namespace, &gateway.metadata.name);
        self.ready.get(&name).map(|one| &one.address)
    }

    /// The waypoint of a service with these host names; `private` when only its namespace sees it. What is a waypoint's own
    /// service has none.
    pub(super) fn for_service(&self, meta: &Meta, hosts: &[String], private: bool) -> Binding {
        let managed = meta.labels.get(MANAGED).map(String::as_str);
        if managed.is_some_and(|by| MANAGED_BY_MESH.contains(&by)) || self.by_host(&meta.namespace, hosts).is_some() {
            return Ok(None);
        }
        let bound = self.bound(&meta.namespace, &meta.labels, Traffic::Service)?;
        if let Some(bound) = bound.as_ref().filter(|_| private)
            && !bound.name.starts_with(&format!("{}/", meta.namespace))
        {
            return Err(Unbound {
                reason: "CrossNamespaceWaypointForbidden",
                message: format!(
                    "waypoint {:?} is in another namespace, and this service is visible in its own only (exportTo)",
                    bound.name
                ),
            });
        }
        Ok(bound)
    }

    /// The waypoint of a workload. One that is an instance of a waypoint has none.
    pub(super) fn for_workload(&self, of: &Instance<'_>) -> Binding {
        match self.instance(of) {
            Some(_) => Ok(None),
            None => self.bound(of.namespace, of.labels, Traffic::Workload),
        }
    }

    /// How a waypoint's instance hands connections to its application, where its Gateway says so.
    pub(super) fn application_tunnel(&self, of: &Instance<'_>) -> Option<ApplicationTunnel> {
        let binding = self.instance(of)?.gateway.inbound_binding()?;
        let protocol = if binding.proxy { Protocol::Proxy } else { Protocol::None };
        Some(ApplicationTunnel {
            protocol: protocol.into(),
            port: binding.port,
        })
    }

    /// The waypoint that a workload is a machine of: by label, by the Gateway's address, or as an endpoint of its service.
    fn instance(&self, of: &Instance<'_>) -> Option<&Waypoint<'a>> {
        let named = of.labels.get(INSTANCE_OF).map(String::as_str);
        if let Some(one) = named.and_then(|name| self.ready.get(&full_name(of.namespace, name))) {
            return Some(one);
        }
        let address = of.address.parse::<IpAddr>().ok().map(bytes_of);
        let mut here = self
            .ready
            .values()
            .filter(|one| one.gateway.metadata.namespace == of.namespace);
        here.find(|one| match &one.address.destination {
            Some(Destination::Address(at)) => Some(&at.address) == address.as_ref() && at.network == of.network,
            Some(Destination::Hostname(at)) => at.hostname == of.address,
            None => false,
        })
        .or_else(|| self.by_host(of.namespace, of.hosts))
    }

    /// The waypoint that is reached by one of these host names.
    fn by_host(&self, namespace: &str, hosts: &[String]) -> Option<&Waypoint<'a>> {
        self.ready.values().find(|one| match &one.address.destination {
            Some(Destination::Hostname(at)) => at.namespace == namespace && hosts.contains(&at.hostname),
            _ => false,
        })
    }

    fn bound(&self, namespace: &str, labels: &Labels, traffic: Traffic) -> Binding {
        let inherited = self.namespaces.get(namespace).copied();
        let (labels, own) = match (labels.contains_key(USE_WAYPOINT), inherited) {
            (true, _) => (labels, true),
            (false, Some(labels)) => (labels, false),
            (false, None) => return Ok(None),
        };
        let Some(name) = labels.get(USE_WAYPOINT).filter(|name| *name != "none") else {
            return Ok(None);
        };
        let of = labels.get(USE_NAMESPACE).map_or(namespace, String::as_str);
        let full = full_name(of, name);
        let refused = |reason, message| Err(Unbound { reason, message });
        let Some(waypoint) = self.ready.get(&full) else {
            let message =
                format!("waypoint {full:?} is not ready: there is no such Gateway, or nothing says where it is");
            return refused("WaypointIsNotReady", message);
        };
        if !self.allows(waypoint.gateway, namespace) {
            let message = format!("waypoint {full:?} is not for namespace {namespace} (its listener's allowedRoutes)");
            return refused("AttachmentDenied", message);
        }
        match (traffic, waypoint.gateway.waypoint_for()) {
            (Traffic::Service, "service" | "all") | (Traffic::Workload, "workload" | "all") => {}
            // A namespace's waypoint for services is no fault of its workloads.
            (Traffic::Workload, _) if !own => return Ok(None),
            (asked, takes) => {
                let asked = if asked == Traffic::Service {
                    "service"
                } else {
                    "workload"
                };
                let message =
                    format!("waypoint {full:?} does not take traffic of kind {asked} (istio.io/waypoint-for: {takes})");
                return refused("UnsupportedTrafficType", message);
            }
        }
        Ok(Some(Bound {
            name: full,
            address: waypoint.address.clone(),
        }))
    }

    fn allows(&self, gateway: &Gateway, namespace: &str) -> bool {
        let allowed = gateway.allowed();
        match allowed.from.as_deref() {
            Some("All") => true,
            Some("Selector") => {
                let none = Labels::new();
                let labels = self.namespaces.get(namespace).copied().unwrap_or(&none);
                allowed.selector.is_some_and(|selector| selector.matches(labels))
            }
            _ => gateway.metadata.namespace == namespace,
        }
    }
}

/// What tells whether a workload is a machine of a waypoint.
pub(super) struct Instance<'a> {
    pub(super) namespace: &'a str,
    pub(super) labels: &'a Labels,
    pub(super) address: &'a str,
    pub(super) network: &'a str,
    /// Host names of the services of its namespace that select it.
    pub(super) hosts: &'a [String],
}

/// As Istio names objects.
pub(super) fn full_name(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}
