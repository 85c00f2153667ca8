//! WorkloadGroup, WorkloadEntry and ServiceEntry.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::health::Probe;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{Finding, address_or_range, is_host, is_host_or_wildcard, parse_range, port, spiffe_part};
use super::meta::{Labels, Meta};

/// Annotation of a WorkloadGroup: comma-separated CIDR ranges, from which its agents may register any address.
const ALLOWED_CIDRS: &str = "mesh.internal/allowed-cidrs";
/// Annotation of a WorkloadEntry: with `true`, its machine speaks HBONE/3. Registered agents of ours get it.
pub const HBONE3: &str = "mesh.internal/hbone3";

/// One machine, or the template of many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EntryTemplate {
    /// IP address or host name; empty in a template.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Named ports of the machine.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// What selectors select by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Which network the address belongs to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Share of the load; absent means 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Service account of the identity; empty means `default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_account: String,
}

/// An endpoint written into a ServiceEntry.
pub type Endpoint = EntryTemplate;

impl EntryTemplate {
    /// The service account of the identity.
    pub fn account(&self) -> &str {
        if self.service_account.is_empty() {
            "default"
        } else {
            &self.service_account
        }
    }

    fn check(&self, path: &str, address: bool, findings: &mut Vec<Finding>) {
        for (name, number) in &self.ports {
            port(*number, &format!("{path}.ports.{name}"), findings);
        }
        if !self.service_account.is_empty() {
            spiffe_part(&self.service_account, &format!("{path}.serviceAccount"), findings);
        }
        let field = format!("{path}.address");
        if self.address.starts_with("unix://") {
            findings.push(Finding::new(field, "unix sockets are not supported as endpoints"));
        } else if address && self.address.parse::<IpAddr>().is_err() && !is_host(&self.address) {
            let message = format!("{:?} is neither an IP address nor a host name", self.address);
            findings.push(Finding::new(field, message));
        }
    }
}

/// `networking.istio.io` WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadEntry {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says.
    pub spec: EntryTemplate,
    /// What its agent reported, as Istio notes it; nothing while the workload is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

impl WorkloadEntry {
    /// An entry that we make ourselves.
    pub fn new(metadata: Meta, spec: EntryTemplate) -> Self {
        Self {
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "WorkloadEntry".to_owned(),
            metadata,
            spec,
            status: None,
        }
    }

    /// Why the workload is out of rotation; nothing while it is in.
    pub fn unhealthy(&self) -> Option<&str> {
        let conditions = self.status.as_ref()?.get("conditions")?.as_array()?;
        let mut conditions = conditions.iter();
        let condition = conditions.find(|one| one["type"] == "Healthy" && one["status"] == "False")?;
        Some(condition["message"].as_str().unwrap_or_default())
    }

    /// Notes why the workload is out of rotation, or that it is in.
    pub fn set_unhealthy(&mut self, reason: Option<&str>) {
        self.status = reason.map(
            |reason| serde_json::json!({ "conditions": [{ "type": "Healthy", "status": "False", "message": reason }] }),
        );
    }

    /// Labels of the spec and of the metadata; the metadata's win.
    pub fn labels(&self) -> Labels {
        let mut labels = self.spec.labels.clone();
        labels.extend(self.metadata.labels.clone());
        labels
    }

    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        self.spec.check("spec", true, findings);
    }
}

/// `networking.istio.io` WorkloadGroup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WorkloadGroup {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says.
    #[serde(default)]
    pub spec: WorkloadGroupSpec,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

/// What a WorkloadGroup says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct WorkloadGroupSpec {
    /// Labels and annotations of its machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<GroupMeta>,
    /// Everything else of its machines.
    pub template: EntryTemplate,
    /// How agents ask their application whether it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// Labels and annotations that a WorkloadGroup gives to its machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupMeta {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Labels,
}

impl WorkloadGroup {
    /// Ranges from which its agents may register any address.
    pub fn allowed_cidrs(&self) -> Vec<ipnet::IpNet> {
        let text = self.metadata.annotations.get(ALLOWED_CIDRS).map_or("", String::as_str);
        text.split(',').filter_map(|c| parse_range(c.trim())).collect()
    }

    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let template = &self.spec.template;
        template.check("spec.template", false, findings);
        if !template.address.is_empty() {
            let message = "a WorkloadGroup's template has no address: each agent brings its own";
            findings.push(Finding::new("spec.template.address", message));
        }
        if self.metadata.namespace == mesh_core::identity::CONTROL_NAMESPACE {
            let message = "namespace mesh-system is reserved for the control plane; machines cannot join it";
            findings.push(Finding::new("metadata.namespace", message));
        }
        for fault in self.spec.probe.iter().flat_map(Probe::check) {
            let field = format!("spec.probe.{}", fault.field);
            findings.push(Finding::new(field.trim_end_matches('.'), fault.message));
        }
        if let Some(text) = self.metadata.annotations.get(ALLOWED_CIDRS) {
            for cidr in text.split(',').map(str::trim).filter(|c| parse_range(c).is_none()) {
                let message = format!("{cidr:?} is neither an IP address nor a CIDR range");
                findings.push(Finding::new(format!("metadata.annotations.{ALLOWED_CIDRS}"), message));
            }
        }
    }
}

/// `networking.istio.io` ServiceEntry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceEntry {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says.
    pub spec: ServiceEntrySpec,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

/// What a ServiceEntry says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// Host names; a first label `*` is a wildcard.
    pub hosts: Vec<String>,
    /// Virtual addresses; empty means one is given automatically.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Ports of the service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServiceEntryPort>,
    /// `MESH_EXTERNAL` or `MESH_INTERNAL`; makes no difference to L4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// `NONE`, `STATIC`, `DNS` or `DNS_ROUND_ROBIN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
    /// Endpoints written here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Endpoints that are WorkloadEntries of this namespace with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelSelector>,
    /// `.` or `*`; absent means `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Further identities of the endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

/// Selector of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelSelector {
    /// All of these.
    pub labels: Labels,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceEntryPort {
    /// The service's port.
    pub number: u32,
    /// Its name; an endpoint's port of this name takes precedence over `targetPort`.
    pub name: String,
    /// Such as `HTTP`; absent means `TCP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The endpoint's port; absent means `number`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u32>,
}

impl ServiceEntry {
    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        if spec.hosts.is_empty() {
            findings.push(Finding::new("spec.hosts", "a ServiceEntry needs at least one host"));
        }
        for (i, host) in spec.hosts.iter().enumerate() {
            if !is_host_or_wildcard(host) {
                findings.push(Finding::new(
                    format!("spec.hosts[{i}]"),
                    format!("{host:?} is not a host name"),
                ));
            }
        }
        for (i, address) in spec.addresses.iter().enumerate() {
            address_or_range(address, &format!("spec.addresses[{i}]"), findings);
        }
        self.check_ports(findings);
        self.check_endpoints(findings);
        for (i, export) in spec.export_to.iter().enumerate() {
            if !matches!(export.as_str(), "." | "*") {
                let message = "only \".\" (this namespace) and \"*\" (all) are supported";
                findings.push(Finding::new(format!("spec.exportTo[{i}]"), message));
            }
        }
        if let Some(l) = spec.location.as_deref()
            && !matches!(l, "MESH_EXTERNAL" | "MESH_INTERNAL")
        {
            let message = format!("{l:?} is neither MESH_EXTERNAL nor MESH_INTERNAL");
            findings.push(Finding::new("spec.location", message));
        }
    }

    fn check_ports(&self, findings: &mut Vec<Finding>) {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (i, p) in self.spec.ports.iter().enumerate() {
            port(p.number, &format!("spec.ports[{i}].number"), findings);
            if let Some(target) = p.target_port {
                port(target, &format!("spec.ports[{i}].targetPort"), findings);
            }
            if !names.insert(&p.name) || !numbers.insert(p.number) {
                let message = format!("port {} ({}) is there twice", p.name, p.number);
                findings.push(Finding::new(format!("spec.ports[{i}]"), message));
            }
        }
        if self.spec.ports.is_empty() {
            findings.push(Finding::new("spec.ports", "a ServiceEntry needs at least one port"));
        }
    }

    fn check_endpoints(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        let resolution = spec.resolution.as_deref().unwrap_or("NONE");
        if !matches!(resolution, "NONE" | "STATIC" | "DNS" | "DNS_ROUND_ROBIN") {
            let message = format!("{resolution:?} is not supported; use NONE, STATIC, DNS or DNS_ROUND_ROBIN");
            findings.push(Finding::new("spec.resolution", message));
        }
        if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
            let message = "workloadSelector and endpoints exclude each other";
            findings.push(Finding::new("spec.workloadSelector", message));
        }
        if resolution == "NONE" && !spec.endpoints.is_empty() {
            findings.push(Finding::new(
                "spec.endpoints",
                "endpoints need resolution STATIC or DNS",
            ));
        }
        for (i, endpoint) in spec.endpoints.iter().enumerate() {
            let path = format!("spec.endpoints[{i}]");
            endpoint.check(&path, true, findings);
            if resolution == "STATIC" && endpoint.address.parse::<IpAddr>().is_err() {
                let message = "with resolution STATIC an endpoint's address must be an IP address";
                findings.push(Finding::new(format!("{path}.address"), message));
            }
        }
    }
}
