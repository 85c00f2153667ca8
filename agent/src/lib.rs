//! The machine's daemon: captures the flows of its services, and carries them over mTLS.
//!
//! ```text
//! app --kernel--> tun --> capture (core::engine) --> outbound --> tunnel ==wire==> tunnel::listen --> inbound --> app
//!                                   |                   |                                              |
//!                                  dns             core::outbound                                core::policy
//! ```
//!
//! [`app`] is where all parts meet. The data plane is one thread with one single-threaded runtime (a shard); xDS,
//! certificates, admin and metrics have another, so that a busy data plane never delays a renewal.

pub mod access;
pub mod admin;
pub mod app;
pub mod capture;
pub mod certs;
pub mod channel;
pub mod cli;
pub mod config;
pub mod copy;
pub mod crl;
pub mod dns;
pub mod failure;
pub mod flows;
pub mod health;
pub mod inbound;
pub mod join;
pub mod kernel;
pub mod metrics;
pub mod notify;
pub mod outbound;
pub mod pulse;
pub mod ready;
pub mod record;
pub mod shared;
pub mod socket;
pub mod state;
pub mod tls;
pub mod trace;
pub mod transports;
pub mod tun;
pub mod tunnel;
pub mod udp;
pub mod xds;
