//! AuthorizationPolicy and PeerAuthentication.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{Finding, address_or_range, port, unsupported};
use super::meta::{Meta, Selector};

/// `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says; nothing means "allow nothing".
    #[serde(default)]
    pub spec: PolicySpec,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

/// What an AuthorizationPolicy says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PolicySpec {
    /// Which workloads; absent means all of the namespace (of the mesh, in mesh-system).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// `ALLOW` or `DENY`; absent means `ALLOW`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Any of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    #[serde(skip_serializing)]
    target_ref: Option<Value>,
    #[serde(skip_serializing)]
    target_refs: Option<Value>,
    #[serde(skip_serializing)]
    provider: Option<Value>,
}

/// One rule: `from`, `to` and every `when` must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Any of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// Any of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// All of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// An entry of `from`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// Who asks.
    pub source: Source,
}

/// Who asks; all the fields that are there must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Source {
    /// `td/ns/NAMESPACE/sa/ACCOUNT`, or with `*` at one end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// `NAMESPACE/ACCOUNT`, or `ACCOUNT` in the policy's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
    /// Addresses and ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    #[serde(skip_serializing)]
    request_principals: Option<Value>,
    #[serde(skip_serializing)]
    not_request_principals: Option<Value>,
    #[serde(skip_serializing)]
    remote_ip_blocks: Option<Value>,
    #[serde(skip_serializing)]
    not_remote_ip_blocks: Option<Value>,
}

/// An entry of `to`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// What is asked for.
    pub operation: Operation,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Operation {
    /// The workload's ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
    #[serde(skip_serializing)]
    hosts: Option<Value>,
    #[serde(skip_serializing)]
    not_hosts: Option<Value>,
    #[serde(skip_serializing)]
    methods: Option<Value>,
    #[serde(skip_serializing)]
    not_methods: Option<Value>,
    #[serde(skip_serializing)]
    paths: Option<Value>,
    #[serde(skip_serializing)]
    not_paths: Option<Value>,
}

/// An entry of `when`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Condition {
    /// Such as `source.ip`.
    pub key: String,
    /// Any of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

const HTTP: &str = "it needs HTTP, and policies are enforced on flows (L4)";

impl AuthorizationPolicy {
    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        if let Some(action) = spec.action.as_deref()
            && !matches!(action, "ALLOW" | "DENY")
        {
            let message = match action {
                "AUDIT" | "CUSTOM" => format!("action {action} is not supported by mesh-control; use ALLOW or DENY"),
                _ => format!("{action:?} is not an action; use ALLOW or DENY"),
            };
            findings.push(Finding::new("spec.action", message));
        }
        let waypoint = "waypoints would enforce it, which mesh-control does not configure; use selector";
        unsupported(spec.target_ref.as_ref(), "spec.targetRef", waypoint, findings);
        unsupported(spec.target_refs.as_ref(), "spec.targetRefs", waypoint, findings);
        unsupported(
            spec.provider.as_ref(),
            "spec.provider",
            "it belongs to action CUSTOM",
            findings,
        );
        for (r, rule) in spec.rules.iter().enumerate() {
            for (i, from) in rule.from.iter().enumerate() {
                from.source
                    .check(&format!("spec.rules[{r}].from[{i}].source"), findings);
            }
            for (i, to) in rule.to.iter().enumerate() {
                to.operation
                    .check(&format!("spec.rules[{r}].to[{i}].operation"), findings);
            }
            for (i, when) in rule.when.iter().enumerate() {
                when.check(&format!("spec.rules[{r}].when[{i}]"), findings);
            }
        }
        if let Some(dry) = self.metadata.annotations.get("istio.io/dry-run")
            && dry.parse::<bool>().is_err()
        {
            let message = format!("{dry:?} is neither \"true\" nor \"false\"");
            findings.push(Finding::new("metadata.annotations.istio.io/dry-run", message));
        }
    }
}

impl Source {
    fn check(&self, path: &str, findings: &mut Vec<Finding>) {
        let nothing = [
            &self.request_principals,
            &self.not_request_principals,
            &self.remote_ip_blocks,
            &self.not_remote_ip_blocks,
        ];
        let names = [
            "requestPrincipals",
            "notRequestPrincipals",
            "remoteIpBlocks",
            "notRemoteIpBlocks",
        ];
        for (value, name) in nothing.into_iter().zip(names) {
            unsupported(value.as_ref(), &format!("{path}.{name}"), HTTP, findings);
        }
        let blocks = [("ipBlocks", &self.ip_blocks), ("notIpBlocks", &self.not_ip_blocks)];
        for (name, list) in blocks {
            for (i, block) in list.iter().enumerate() {
                address_or_range(block, &format!("{path}.{name}[{i}]"), findings);
            }
        }
        let strings = [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
        ];
        let mut any = [
            &self.ip_blocks,
            &self.not_ip_blocks,
            &self.service_accounts,
            &self.not_service_accounts,
        ]
        .iter()
        .any(|l| !l.is_empty());
        for (name, list) in strings {
            any |= !list.is_empty();
            check_patterns(list, &format!("{path}.{name}"), findings);
        }
        if !any && findings.is_empty() {
            findings.push(Finding::new(
                path,
                "an empty source matches nothing; say which, or leave `from` out",
            ));
        }
        if !(self.service_accounts.is_empty() && self.not_service_accounts.is_empty())
            && strings.iter().any(|(_, list)| !list.is_empty())
        {
            let message = "serviceAccounts cannot be mixed with principals or namespaces in one source";
            findings.push(Finding::new(format!("{path}.serviceAccounts"), message));
        }
    }
}

impl Operation {
    fn check(&self, path: &str, findings: &mut Vec<Finding>) {
        let values = [
            &self.hosts,
            &self.not_hosts,
            &self.methods,
            &self.not_methods,
            &self.paths,
            &self.not_paths,
        ];
        let names = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
        let mut http = false;
        for (value, name) in values.into_iter().zip(names) {
            http |= value.is_some();
            unsupported(value.as_ref(), &format!("{path}.{name}"), HTTP, findings);
        }
        check_ports(&self.ports, &format!("{path}.ports"), findings);
        check_ports(&self.not_ports, &format!("{path}.notPorts"), findings);
        if !http && self.ports.is_empty() && self.not_ports.is_empty() {
            findings.push(Finding::new(
                path,
                "an empty operation matches nothing; say which, or leave `to` out",
            ));
        }
    }
}

impl Condition {
    fn check(&self, path: &str, findings: &mut Vec<Finding>) {
        if self.values.is_empty() && self.not_values.is_empty() {
            findings.push(Finding::new(path, "a condition needs values or notValues"));
        }
        for (name, list) in [("values", &self.values), ("notValues", &self.not_values)] {
            let field = format!("{path}.{name}");
            match self.key.as_str() {
                "source.ip" | "destination.ip" => {
                    for (i, block) in list.iter().enumerate() {
                        address_or_range(block, &format!("{field}[{i}]"), findings);
                    }
                }
                "source.namespace" | "source.principal" => check_patterns(list, &field, findings),
                "source.serviceAccount" => {}
                "destination.port" => check_ports(list, &field, findings),
                key => {
                    let message = format!(
                        "condition {key:?} is not supported by mesh-control: {HTTP}; supported are source.ip, source.namespace, source.principal, source.serviceAccount, destination.ip, destination.port"
                    );
                    findings.push(Finding::new(format!("{path}.key"), message));
                    return;
                }
            }
        }
    }
}

fn check_ports(ports: &[String], path: &str, findings: &mut Vec<Finding>) {
    for (i, text) in ports.iter().enumerate() {
        let field = format!("{path}[{i}]");
        match text.parse::<u32>() {
            Ok(number) => port(number, &field, findings),
            Err(_) => findings.push(Finding::new(field, format!("{text:?} is not a port number"))),
        }
    }
}

fn check_patterns(patterns: &[String], path: &str, findings: &mut Vec<Finding>) {
    for (i, pattern) in patterns.iter().enumerate() {
        let inner = pattern
            .strip_prefix('*')
            .or_else(|| pattern.strip_suffix('*'))
            .unwrap_or(pattern);
        let field = format!("{path}[{i}]");
        if pattern.is_empty() {
            findings.push(Finding::new(field, "an empty string matches nothing"));
        } else if inner.contains('*') {
            let message = format!("{pattern:?}: `*` may stand only at one end");
            findings.push(Finding::new(field, message));
        } else if pattern.starts_with("spiffe://") {
            findings.push(Finding::new(field, "principals are written without spiffe://"));
        }
    }
}

/// `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PeerAuthentication {
    /// As written.
    pub api_version: String,
    kind: String,
    /// Who it is.
    pub metadata: Meta,
    /// What it says.
    #[serde(default)]
    pub spec: PeerSpec,
    #[serde(default, skip_serializing, rename = "status")]
    _status: Option<serde::de::IgnoredAny>,
}

/// What a PeerAuthentication says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PeerSpec {
    /// Which workloads; absent means all of the namespace (of the mesh, in mesh-system).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Whether plaintext is let in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// The same by the workload's port; needs a selector.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<u32, MutualTls>,
}

/// Whether plaintext is let in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MutualTls {
    /// `UNSET`, `DISABLE`, `PERMISSIVE` or `STRICT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl PeerAuthentication {
    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        let spec = &self.spec;
        let modes = spec.mtls.iter().map(|m| ("spec.mtls.mode".to_owned(), m));
        let by_port = spec.port_level_mtls.iter();
        let by_port = by_port.map(|(p, m)| (format!("spec.portLevelMtls.{p}.mode"), m));
        for (field, mtls) in modes.chain(by_port) {
            if let Some(mode) = mtls.mode.as_deref()
                && !matches!(mode, "UNSET" | "DISABLE" | "PERMISSIVE" | "STRICT")
            {
                let message = format!("{mode:?} is not UNSET, DISABLE, PERMISSIVE or STRICT");
                findings.push(Finding::new(field, message));
            }
        }
        for number in spec.port_level_mtls.keys() {
            port(*number, &format!("spec.portLevelMtls.{number}"), findings);
        }
        let selects = spec.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty());
        if !spec.port_level_mtls.is_empty() && !selects {
            findings.push(Finding::new("spec.portLevelMtls", "portLevelMtls needs a selector"));
        }
        if selects && self.metadata.namespace == mesh_core::identity::CONTROL_NAMESPACE {
            let message = "a PeerAuthentication in mesh-system is for the whole mesh and cannot have a selector";
            findings.push(Finding::new("spec.selector", message));
        }
    }
}
