//! The embedded control plane: CA, join tokens, registry, resources, xDS, and the operator's calls.
//!
//! [`serve::run`] is the daemon `mesh-control`; [`cli::main`] is `meshctl`. State lives in one SQLite file ([`store`]);
//! what agents are told is derived from it by the pure module [`derive`].

pub mod auth;
pub mod ca;
pub mod cli;
pub mod config;
pub mod control;
pub mod derive;
pub mod error;
pub mod incoming;
pub mod issue;
pub mod join;
pub mod limits;
pub mod operator;
pub mod registry;
pub mod resources;
pub mod rotation;
pub mod serve;
pub mod store;
pub mod tls;
pub mod token;
pub mod xds;
