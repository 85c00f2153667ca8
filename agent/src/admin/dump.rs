//! `/config_dump`, with the names and shapes of ztunnel's, so that `istioctl ztunnel-config --file` reads it (its types are
//! in istioctl/pkg/writer/ztunnel/configdump). Never a private key.

mod certificates;
mod connections;
mod policies;
mod services;
mod workloads;

use std::collections::BTreeMap;

use serde::Serialize;

use super::status::{Member, View};
use crate::config::Config;
use certificates::Certificates;
use connections::WorkloadState;
use policies::Policy;
use services::{Endpoint, Service};
use workloads::Workload;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump<'a> {
    workloads: Vec<Workload<'a>>,
    services: Vec<Service<'a>>,
    policies: Vec<Policy<'a>>,
    /// Endpoints whose service has not arrived: by service, then by workload.
    staged_services: BTreeMap<String, BTreeMap<&'a str, Endpoint<'a>>>,
    static_config: StaticConfig,
    version: Version,
    config: Option<&'a Config>,
    certificates: Vec<Certificates>,
    /// By the workload's uid; ours is the only one.
    workload_state: BTreeMap<String, WorkloadState<'a>>,
}

/// What ztunnel reads from a file of its own; we have none.
#[derive(Default, Serialize)]
struct StaticConfig {
    workloads: [(); 0],
    policies: [(); 0],
    services: [(); 0],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: &'static str,
    crypto_provider: &'static str,
}

const VERSION: Version = Version {
    version: env!("CARGO_PKG_VERSION"),
    crypto_provider: "aws-lc-rs",
};

/// The dump, as JSON. A machine that has not joined has an empty one.
pub fn render(view: &View) -> serde_json::Result<Vec<u8>> {
    match view {
        View::Member(member) => of_member(member),
        View::Waiting { .. } => serde_json::to_vec(&Dump {
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            staged_services: BTreeMap::new(),
            static_config: StaticConfig::default(),
            version: VERSION,
            config: None,
            certificates: Vec::new(),
            workload_state: BTreeMap::new(),
        }),
    }
}

fn of_member(member: &Member) -> serde_json::Result<Vec<u8>> {
    let shared = &member.shared;
    let world = shared.world();
    let credentials = shared.credentials();
    let own = shared.own_workload(&world);
    let (uid, state) = connections::state(shared, own.as_deref());
    serde_json::to_vec(&Dump {
        workloads: world.workloads().map(|one| workloads::of(one)).collect(),
        services: world.services().map(|one| services::of(&world, one)).collect(),
        policies: world.policies().map(|one| policies::of(one)).collect(),
        staged_services: services::staged(&world),
        static_config: StaticConfig::default(),
        version: VERSION,
        config: Some(&shared.config),
        certificates: vec![certificates::of(&shared.membership, credentials.as_deref())],
        workload_state: BTreeMap::from([(uid, state)]),
    })
}

#[cfg(test)]
mod tests;
