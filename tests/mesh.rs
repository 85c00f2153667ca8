//! Whole agents and a whole control plane, each machine with its own network and mount namespace, real kernel TUN, real
//! nginx and curl: what users see.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub)]

#[path = "mesh/application.rs"]
mod application;
#[path = "mesh/fixture.rs"]
mod fixture;
#[path = "mesh/health.rs"]
mod health;
#[path = "mesh/hosts.rs"]
mod hosts;
#[path = "mesh/joining.rs"]
mod joining;
#[path = "mesh/names.rs"]
mod names;
#[path = "mesh/observe.rs"]
mod observe;
#[path = "mesh/outages.rs"]
mod outages;
#[path = "mesh/policies.rs"]
mod policies;
#[path = "mesh/revocation.rs"]
mod revocation;
#[path = "mesh/sandbox.rs"]
mod sandbox;
#[path = "mesh/source.rs"]
mod source;
#[path = "mesh/tools.rs"]
mod tools;
#[path = "mesh/traffic.rs"]
mod traffic;
#[path = "mesh/transport.rs"]
mod transport;
#[path = "mesh/udp.rs"]
mod udp;
#[path = "mesh/waypoint.rs"]
mod waypoint;
