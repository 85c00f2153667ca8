//! The generated code in src/gen is committed, so that a build needs no protobuf compiler; this test regenerates it
//! and compares. After a change of a .proto file run it with `MESH_PROTO_WRITE=1` to write the new code.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::{env, fs};

const FILES: &[&str] = &[
    "envoy/discovery.proto",
    "grpc/health.proto",
    "istio/workload.proto",
    "istio/authorization.proto",
    "istio/ca.proto",
    "mesh/mesh.proto",
    "mesh/snapshot.proto",
];

#[test]
fn generated_code_is_what_the_proto_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let scratch = tempfile::tempdir().unwrap();
    generate(root, scratch.path());

    let target = root.join("src/gen");
    let mut stale = Vec::new();
    for entry in fs::read_dir(scratch.path()).unwrap() {
        let fresh = entry.unwrap().path();
        let kept = target.join(fresh.file_name().unwrap());
        let text = fs::read_to_string(&fresh).unwrap();
        if env::var_os("MESH_PROTO_WRITE").is_some() {
            fs::create_dir_all(&target).unwrap();
            fs::write(&kept, &text).unwrap();
        } else if fs::read_to_string(&kept).ok().as_deref() != Some(&text) {
            stale.push(kept);
        }
    }
    assert!(
        stale.is_empty(),
        "stale: {stale:?}; run `MESH_PROTO_WRITE=1 cargo test -p mesh-proto`"
    );
}

fn generate(root: &Path, out: &Path) {
    let descriptors = protox::compile(FILES, [root]).unwrap();
    tonic_prost_build::configure()
        .out_dir(out)
        .emit_rerun_if_changed(false)
        .include_file("mod.rs")
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .btree_map(".")
        .bytes(".envoy.service.discovery.v3")
        .compile_fds(descriptors)
        .unwrap();
}
