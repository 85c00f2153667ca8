//! Istio's own ztunnel, unmodified, under mesh-control: each in a network namespace of its own.
//!
//! Runs when `ZTUNNEL` names its binary; without it each test says SKIPPED aloud and passes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub)]

#[path = "interop/agents.rs"]
mod agents;
#[path = "mesh/application.rs"]
mod application;
#[path = "interop/control.rs"]
mod control;
// Shared with tests/mesh.rs; each uses a part of it.
#[allow(dead_code)]
#[path = "mesh/fixture.rs"]
mod fixture;
#[path = "interop/issuer.rs"]
mod issuer;
#[allow(dead_code)]
#[path = "mesh/tools.rs"]
mod tools;
#[path = "interop/traffic.rs"]
mod traffic;
#[path = "interop/waypoint.rs"]
mod waypoint;
#[path = "interop/ztunnel.rs"]
mod ztunnel;
