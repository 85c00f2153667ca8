//! Arbitrary xDS responses into a session and a world: no panic, and the snapshot of what was accepted restores to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::world::World;
use mesh_core::xds::Session;
use mesh_proto::envoy::core::Node;
use mesh_proto::envoy::discovery::DeltaDiscoveryResponse;
use mesh_proto::type_url::{ADDRESS, AUTHORIZATION, REVOCATION, TRUST_BUNDLE};
use prost::Message;

const TYPES: [&str; 4] = [ADDRESS, AUTHORIZATION, REVOCATION, TRUST_BUNDLE];

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (which, bytes) = input;
    let Ok(mut response) = DeltaDiscoveryResponse::decode(bytes.as_slice()) else {
        return;
    };
    let type_url = TYPES[usize::from(which) % TYPES.len()];
    response.type_url = type_url.to_owned();
    // Strings of this length are not found by chance.
    for any in response.resources.iter_mut().filter_map(|one| one.resource.as_mut()) {
        any.type_url = type_url.to_owned();
    }
    let mut session = Session::new(Node::default(), &TYPES);
    let handled = session.handle(response);
    assert_eq!(handled.reply.error_detail.is_some(), !handled.rejected.is_empty());
    let world = World::default().apply(handled.delta);
    let mut next = Session::new(Node::default(), &TYPES);
    let restored = World::default().apply(next.restore(session.snapshot()));
    assert_eq!(world.workloads().count(), restored.workloads().count());
    assert_eq!(world.services().count(), restored.services().count());
    assert_eq!(world.policies().count(), restored.policies().count());
});
