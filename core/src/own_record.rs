//! Whether the control plane lists this machine as it should. Without a right record of its own a machine looks healthy, and
//! nobody can reach it by the mesh.

use std::net::IpAddr;

use crate::identity::Identity;
use crate::world::{TunnelProtocol, World};

/// What our record should say.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    pub namespace: &'a str,
    /// Name of the WorkloadEntry, as istiod computes it.
    pub name: &'a str,
    pub group: &'a str,
    pub network: &'a str,
    pub address: IpAddr,
    /// Of our certificate.
    pub identity: &'a Identity,
}

/// What is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    #[error(
        "istiod has no record of this machine: it should be the WorkloadEntry {namespace}/{name}. Is there a WorkloadGroup \
         {namespace}/{group}, and is auto-registration on at istiod (PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION)?"
    )]
    Absent {
        namespace: String,
        name: String,
        group: String,
    },
    #[error(
        "this machine's address {address} is recorded as {found}, but it should be the WorkloadEntry {expected}: delete the \
         other record, or join with the group and network that it was made with"
    )]
    OtherName {
        address: IpAddr,
        found: String,
        expected: String,
    },
    #[error(
        "the record {0} says that this machine accepts no HBONE (tunnel protocol NONE), so that peers send plaintext or nothing: \
         Istio before 1.31 needs the label networking.istio.io/tunnel=http in the WorkloadGroup's metadata; delete the \
         WorkloadEntry after that, and it is made anew"
    )]
    NoTunnel(String),
    #[error(
        "the record {record} is of {recorded}, but this machine's certificate is of {certificate}: set \
         spec.template.serviceAccount of the WorkloadGroup, delete the WorkloadEntry, and make the bundle for that account"
    )]
    OtherIdentity {
        record: String,
        recorded: Identity,
        certificate: Identity,
    },
    #[error(
        "the record {record} has the addresses {recorded:?}, but this machine registered {address}: peers connect to another \
         machine; delete the WorkloadEntry, or join again with --address"
    )]
    OtherAddress {
        record: String,
        recorded: Vec<IpAddr>,
        address: IpAddr,
    },
    #[error(
        "the record {record} is in the network {recorded:?}, but the bundle says {expected:?}, so that addresses of the mesh are \
         not found: set spec.template.network of the WorkloadGroup and make the bundle again"
    )]
    OtherNetwork {
        record: String,
        recorded: String,
        expected: String,
    },
}

/// All that is wrong; nothing when peers can reach this machine as whom it is.
pub fn check(world: &World, expected: &Expected<'_>) -> Vec<Finding> {
    let record = format!("{}/{}", expected.namespace, expected.name);
    let Some(own) = world.workload_named(expected.namespace, expected.name) else {
        return vec![absent(world, expected, record)];
    };
    let mut findings = Vec::new();
    if own.tunnel_protocol == TunnelProtocol::None {
        findings.push(Finding::NoTunnel(record.clone()));
    }
    if own.identity != *expected.identity {
        findings.push(Finding::OtherIdentity {
            record: record.clone(),
            recorded: own.identity.clone(),
            certificate: expected.identity.clone(),
        });
    }
    if !own.addresses.contains(&expected.address) {
        findings.push(Finding::OtherAddress {
            record: record.clone(),
            recorded: own.addresses.clone(),
            address: expected.address,
        });
    }
    if *own.network != *expected.network {
        findings.push(Finding::OtherNetwork {
            record,
            recorded: own.network.to_string(),
            expected: expected.network.to_owned(),
        });
    }
    findings
}

fn absent(world: &World, expected: &Expected<'_>, record: String) -> Finding {
    match world.workload_at(expected.network, expected.address) {
        Some(other) => Finding::OtherName {
            address: expected.address,
            found: format!("{}/{}", other.namespace, other.name),
            expected: record,
        },
        None => Finding::Absent {
            namespace: expected.namespace.to_owned(),
            name: expected.name.to_owned(),
            group: expected.group.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::world::fixture::workload;
    use crate::world::{Delta, Workload};

    const ADDRESS: &str = "10.0.0.7";

    /// What is found in a world that holds the record of `orders` with this change.
    fn found(change: impl FnOnce(&mut Workload)) -> Vec<Finding> {
        let mut own = workload("orders", ADDRESS);
        change(&mut own);
        let delta = Delta {
            workloads: vec![own],
            ..Delta::default()
        };
        findings(&World::default().apply(delta))
    }

    fn findings(world: &World) -> Vec<Finding> {
        let identity = Identity::new("mesh.internal", "shop", "orders").unwrap();
        let expected = Expected {
            namespace: "shop",
            name: "orders",
            group: "orders-group",
            network: "",
            address: ADDRESS.parse().unwrap(),
            identity: &identity,
        };
        check(world, &expected)
    }

    #[test]
    fn a_right_record_is_silent() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|own| own.addresses.push("fd00::7".parse().unwrap())), []);
    }

    #[test]
    fn each_wrong_record_has_its_own_words() {
        let absent = findings(&World::default());
        type Case = (Vec<Finding>, &'static [&'static str]);
        let cases: [Case; 6] = [
            (
                absent,
                &[
                    "no record",
                    "shop/orders",
                    "WorkloadGroup shop/orders-group",
                    "AUTOREGISTRATION",
                ],
            ),
            (
                found(|own| own.name = "by-hand".into()),
                &[
                    "10.0.0.7",
                    "recorded as shop/by-hand",
                    "should be the WorkloadEntry shop/orders",
                ],
            ),
            (
                found(|own| own.tunnel_protocol = TunnelProtocol::None),
                &["no HBONE", "networking.istio.io/tunnel=http", "1.31"],
            ),
            (
                found(|own| own.identity = Identity::new("mesh.internal", "shop", "default").unwrap()),
                &[
                    "of spiffe://mesh.internal/ns/shop/sa/default",
                    "certificate is of spiffe://mesh.internal/ns/shop/sa/orders",
                ],
            ),
            (
                found(|own| own.addresses = vec!["10.0.0.8".parse().unwrap()]),
                &["10.0.0.8", "registered 10.0.0.7", "--address"],
            ),
            (
                found(|own| own.network = "main".into()),
                &["\"main\"", "template.network"],
            ),
        ];
        for (findings, words) in cases {
            let [finding] = findings.as_slice() else {
                panic!("{words:?}: {findings:?}");
            };
            let text = finding.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let several = found(|own| {
            own.tunnel_protocol = TunnelProtocol::None;
            own.network = "main".into();
            own.addresses.clear();
        });
        assert_eq!(several.len(), 3, "{several:?}");
    }
}
