//! The control plane from outside: a whole server, and machines that speak to it as agents do.
#![allow(clippy::unwrap_used)]

mod cli;
mod common;
mod data_plane;
mod durability;
mod health;
mod join;
mod operator;
mod xds;
mod ztunnel;
