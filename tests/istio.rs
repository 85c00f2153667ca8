//! Whole agents that join istiod. istiod is played by a script that speaks its protocol (certificates for a JWT or a client
//! certificate, delta ADS, auto-registration), refuses as it refuses, and remembers what it was asked.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "istio/envoy.rs"]
mod envoy;
#[path = "mesh/fixture.rs"]
#[allow(dead_code, reason = "the machines of tests/mesh.rs, without its control plane")]
mod fixture;
#[path = "istio/health.rs"]
mod health;
#[path = "istio/istiod.rs"]
mod istiod;
#[path = "istio/joining.rs"]
mod joining;
#[path = "istio/lab.rs"]
mod lab;
#[path = "istio/middle.rs"]
mod middle;
#[path = "istio/script.rs"]
mod script;
#[path = "istio/streams.rs"]
mod streams;
#[path = "mesh/tools.rs"]
#[allow(dead_code, reason = "what machines can do, of which not all is needed here")]
mod tools;
