//! Arbitrary bytes as a DNS message, against an empty world and against one that is synced: no panic, answers within their
//! size and with the query's id.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::dns::{self, Action, View};
use mesh_core::world::{Delta, World};

fuzz_target!(|bytes: &[u8]| {
    let search = ["corp.example".to_owned()];
    let view = View {
        network: "",
        namespace: "shop",
        cluster_domain: "cluster.local",
        mesh_domain: "mesh.internal",
        search: &search,
    };
    let synced = World::default().apply(Delta {
        addresses_synced: true,
        ..Delta::default()
    });
    for world in [World::default(), synced] {
        if let Action::Answer(answer) = dns::decide(bytes, &world, &view, 1, 1232) {
            assert!(answer.len() >= 12 && answer.len() <= 1232);
            assert_eq!(answer[..2], bytes[..2]);
        }
    }
    for v6 in [false, true] {
        if let Ok(found) = dns::lookup::addresses(1, "a", v6, bytes) {
            assert!(found.len() <= 16 && found.iter().all(|ip| ip.is_ipv6() == v6));
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        dns::lookup::in_hosts(text, "control");
    }
    if let Some(answer) = dns::servfail(bytes) {
        assert_eq!(answer[..2], bytes[..2]);
    }
});
