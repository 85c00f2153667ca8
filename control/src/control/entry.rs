//! The WorkloadEntry that is made for a machine that registers.

use crate::resources::{EntryTemplate, HBONE3, Labels, Meta, WorkloadEntry, WorkloadGroup};
use crate::store::Agent;
use crate::xds::Node;

/// Name of the WorkloadEntry of an agent with this address in this group.
pub(crate) fn entry_name(group: &str, address: &str) -> String {
    entry_name_in(group, address, "")
}

/// The same for a data plane of Istio's, which computes it by its network too.
fn entry_name_in(group: &str, address: &str, network: &str) -> String {
    let mut name = format!("{group}-{}", address.replace(':', "-"));
    if !network.is_empty() {
        name = format!("{name}-{network}");
    }
    // As Istio has it: the last 253 characters.
    let start = name.len().saturating_sub(253);
    name.get(start..).unwrap_or(&name).to_owned()
}

/// By its labels a workload belongs to services, whose clients then believe its identity: so the group has the last word, and of
/// what the node says of itself only some are taken.
fn labels(group: &WorkloadGroup, node: &Node) -> Labels {
    let mut labels = group.spec.template.labels.clone();
    labels.extend(group.spec.metadata.clone().unwrap_or_default().labels);
    labels.remove("istio-locality");
    for (key, value) in node.labels.iter().filter(|(key, _)| is_of_the_node(key)) {
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let tunnel = "networking.istio.io/tunnel".to_owned();
    labels.entry(tunnel).or_insert_with(|| "http".to_owned());
    labels
}

/// Labels that say where, in which version and how reachable something runs.
fn is_of_the_node(label: &str) -> bool {
    let domain = label.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|domain| NODE_LABELS.contains(&domain))
}

const NODE_LABELS: [&str; 4] = [
    "networking.istio.io",
    "service.istio.io",
    "topology.istio.io",
    "topology.kubernetes.io",
];

/// The entry that a node is given: what the group says, and what the node says of itself.
pub(super) fn entry_of(agent: &Agent, group: &WorkloadGroup, node: &Node) -> WorkloadEntry {
    let template = &group.spec.template;
    let wide = group.spec.metadata.clone().unwrap_or_default();
    let labels = labels(group, node);
    let network = match node.ours {
        true => "",
        false => node.network.as_str(),
    };
    let name = entry_name_in(&agent.workload_group, &agent.address, network);
    let mut meta = Meta::new(&agent.namespace, &name);
    meta.annotations = wide.annotations;
    let registered_in = (
        "istio.io/autoRegistrationGroup".to_owned(),
        agent.workload_group.clone(),
    );
    meta.annotations.extend([registered_in]);
    meta.annotations.remove(HBONE3);
    // Only our own agent says which version of it this is.
    if !node.version.is_empty() {
        meta.annotations.insert(HBONE3.to_owned(), "true".to_owned());
    }
    meta.labels.clone_from(&labels);
    let or = |own: &String, other: &String| if own.is_empty() { other.clone() } else { own.clone() };
    let spec = EntryTemplate {
        address: agent.address.clone(),
        labels,
        network: or(&template.network, &node.network),
        locality: or(&template.locality, &node.locality),
        service_account: agent.service_account.clone(),
        ..template.clone()
    };
    WorkloadEntry::new(meta, spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_cannot_label_itself_into_another_service() {
        let group = r#"{"apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"metadata": {"labels": {"service.istio.io/canonical-name": "web"}}, "template": {"labels": {"app": "web"}}}}"#;
        let group: WorkloadGroup = serde_json::from_str(group).unwrap();
        let told = [
            ("app", "orders"),
            ("role", "admin"),
            ("istio.io/use-waypoint", "none"),
            ("service.istio.io/canonical-name", "orders"),
            ("topology.kubernetes.io/zone", "a"),
        ];
        let node = Node {
            labels: told.map(|(key, value)| (key.into(), value.into())).into(),
            ..Node::default()
        };
        let expected = [
            ("app", "web"),
            ("networking.istio.io/tunnel", "http"),
            ("service.istio.io/canonical-name", "web"),
            ("topology.kubernetes.io/zone", "a"),
        ];
        let expected: Labels = expected.map(|(key, value)| (key.into(), value.into())).into();
        assert_eq!(labels(&group, &node), expected);
    }

    #[test]
    fn entry_names() {
        assert_eq!(entry_name("web", "10.0.0.1"), "web-10.0.0.1");
        assert_eq!(entry_name("web", "fd00::1"), "web-fd00--1");
        assert_eq!(entry_name_in("web", "10.0.0.1", "net"), "web-10.0.0.1-net");
    }
}
