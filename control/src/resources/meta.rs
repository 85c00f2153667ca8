//! `metadata` and selectors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check::{Finding, is_name, spiffe_part};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Who a resource is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Its name.
    pub name: String,
    /// Its namespace; `default` when absent.
    #[serde(default = "default_namespace", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// What selectors select by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Everything else.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Labels,
    // What a Kubernetes server fills in; users paste it along. It says nothing of what is wanted, so it is read and dropped.
    #[serde(default, skip_serializing, rename = "creationTimestamp")]
    _creation_timestamp: Option<serde::de::IgnoredAny>,
    #[serde(default, skip_serializing, rename = "resourceVersion")]
    _resource_version: Option<serde::de::IgnoredAny>,
    #[serde(default, skip_serializing, rename = "uid")]
    _uid: Option<serde::de::IgnoredAny>,
    #[serde(default, skip_serializing, rename = "generation")]
    _generation: Option<serde::de::IgnoredAny>,
    #[serde(default, skip_serializing, rename = "managedFields")]
    _managed_fields: Option<serde::de::IgnoredAny>,
}

/// Where a resource is that names no namespace.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_owned()
}

impl Meta {
    /// Metadata of a resource that we make ourselves.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn check_name(&self, findings: &mut Vec<Finding>) {
        if !is_name(&self.name) {
            let message = format!(
                "{:?} is not a name: use lower case letters, digits, '-' and '.'",
                self.name
            );
            findings.push(Finding::new("metadata.name", message));
        }
    }

    pub(super) fn check(&self, findings: &mut Vec<Finding>) {
        self.check_name(findings);
        if !is_name(&self.namespace) || self.namespace.contains('.') {
            let message = format!(
                "{:?} is not a namespace: use lower case letters, digits and '-'",
                self.namespace
            );
            findings.push(Finding::new("metadata.namespace", message));
        }
        spiffe_part(&self.namespace, "metadata.namespace", findings);
    }
}

/// Which workloads a policy is for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Selector {
    /// All of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
}

impl Selector {
    /// Whether a workload with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
    }
}
