//! HBONE/3 over loopback: who gets a tunnel, what may be asked for in it, and that others' HTTP/3 understands ours.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "tunnel/between.rs"]
mod between;
#[path = "tunnel/health.rs"]
mod health;
#[path = "tunnel/http3.rs"]
mod http3;
#[path = "tunnel/identity.rs"]
mod identity;
#[path = "tunnel/mesh.rs"]
mod mesh;
#[path = "tunnel/middle.rs"]
mod middle;
#[path = "tunnel/streams.rs"]
mod streams;
