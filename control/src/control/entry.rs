//! The WorkloadEntry that is made for a machine that registers.

use crate::resources::{EntryTemplate, HBONE3, Meta, WorkloadEntry, WorkloadGroup};
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

/// The entry that a node is given: what the group says, and what the node says of itself.
pub(super) fn entry_of(agent: &Agent, group: &WorkloadGroup, node: &Node) -> WorkloadEntry {
    let template = &group.spec.template;
    let wide = group.spec.metadata.clone().unwrap_or_default();
    let mut labels = template.labels.clone();
    labels.extend(wide.labels);
    labels.extend(node.labels.clone());
    labels.remove("istio-locality");
    labels
        .entry("networking.istio.io/tunnel".to_owned())
        .or_insert_with(|| "http".to_owned());
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
    use super::{entry_name, entry_name_in};

    #[test]
    fn entry_names() {
        assert_eq!(entry_name("web", "10.0.0.1"), "web-10.0.0.1");
        assert_eq!(entry_name("web", "fd00::1"), "web-fd00--1");
        assert_eq!(entry_name_in("web", "10.0.0.1", "net"), "web-10.0.0.1-net");
    }
}
