//! What agents are told over delta ADS: the published snapshot, one pure session per stream, and the service around it.

mod node;
mod service;
mod session;
mod snapshot;

pub use node::Node;
pub use service::Ads;
pub use session::{Acknowledged, Session};
pub use snapshot::{Entry, Snapshot, TypeSnapshot, XdsType};
