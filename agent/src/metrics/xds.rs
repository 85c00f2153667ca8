//! Metrics of the stream from the control plane (as ztunnel does it).

use mesh_proto::type_url;
use metrics::{counter, describe_counter};

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The control plane was not reached.
    ConnectionError,
    /// What was open broke.
    Error,
    /// The control plane ended it.
    Complete,
}

/// A stream ended, or did not begin.
pub fn ended(how: Ended) {
    let reason = match how {
        Ended::ConnectionError => "ConnectionError",
        Ended::Error => "Error",
        Ended::Complete => "Complete",
    };
    counter!(TERMINATIONS, "reason" => reason).increment(1);
}

/// A response came, with so many bytes of resources.
pub fn message(url: &str, bytes: usize) {
    // What is not one of the types that we ask for has no series of its own.
    let known = TYPES.into_iter().find(|known| *known == url);
    let url = known.unwrap_or("unknown");
    counter!(MESSAGES, "url" => url).increment(1);
    counter!(BYTES, "url" => url).increment(bytes as u64);
}

pub(super) fn describe() {
    describe_counter!(TERMINATIONS, "Streams from the control plane that ended, by reason");
    describe_counter!(MESSAGES, "Responses of the control plane, by type");
    describe_counter!(BYTES, "Bytes of resources in responses of the control plane, by type");
}

const TYPES: [&str; 4] = [
    type_url::ADDRESS,
    type_url::AUTHORIZATION,
    type_url::REVOCATION,
    type_url::TRUST_BUNDLE,
];
const TERMINATIONS: &str = "istio_xds_connection_terminations_total";
const MESSAGES: &str = "istio_xds_message_total";
const BYTES: &str = "istio_xds_message_bytes_total";
