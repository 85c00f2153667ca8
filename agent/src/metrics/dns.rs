//! Istio's DNS metrics (as ztunnel does it).

use std::sync::Arc;
use std::time::Duration;

use mesh_core::world::Workload;
use metrics::{Label, counter, describe_counter, describe_histogram, histogram};

/// One query's labels.
#[derive(Clone, Debug)]
pub struct Query(Vec<Label>);

impl Query {
    /// Reads the type that is asked for; `protocol` is `udp` or `tcp`. `own` is the workload of this machine, which asks.
    pub fn new(message: &[u8], protocol: &'static str, own: Option<&Workload>) -> Self {
        let of = |field: fn(&Workload) -> &Arc<str>| {
            own.map(|own| field(own).to_string())
                .filter(|value| !value.is_empty())
                .unwrap_or_else(|| "unknown".into())
        };
        Self(vec![
            Label::from_static_parts("request_query_type", query_type(message)),
            Label::from_static_parts("request_protocol", protocol),
            Label::new("source_canonical_service", of(|own| &own.canonical_name)),
            Label::new("source_canonical_revision", of(|own| &own.canonical_revision)),
        ])
    }

    /// It came.
    pub fn received(&self) {
        counter!(REQUESTS, self.0.clone()).increment(1);
    }

    /// The machine's own servers were asked, and took so long; or none answered.
    pub fn forwarded(&self, took: Duration, answered: bool) {
        counter!(UPSTREAM_REQUESTS, self.0.clone()).increment(1);
        if answered {
            histogram!(DURATION, self.0.clone()).record(took);
        } else {
            counter!(UPSTREAM_FAILURES, self.0.clone()).increment(1);
        }
    }
}

pub(super) fn describe() {
    describe_counter!(REQUESTS, "DNS requests");
    describe_counter!(
        UPSTREAM_REQUESTS,
        "DNS requests that were forwarded to the machine's own servers"
    );
    describe_counter!(UPSTREAM_FAILURES, "DNS requests that none of those servers answered");
    describe_histogram!(DURATION, "Seconds until one of those servers answered");
}

/// The type of the first question (RFC 1035 4.1.2), from a list that is bounded.
fn query_type(message: &[u8]) -> &'static str {
    match question_type(message) {
        None => "unknown",
        Some(1) => "a",
        Some(2) => "ns",
        Some(5) => "cname",
        Some(6) => "soa",
        Some(12) => "ptr",
        Some(15) => "mx",
        Some(16) => "txt",
        Some(28) => "aaaa",
        Some(33) => "srv",
        Some(65) => "https",
        Some(255) => "any",
        Some(_) => "other",
    }
}

fn question_type(message: &[u8]) -> Option<u16> {
    let mut at = HEADER;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            length => at += 1 + length,
        }
    }
    Some(u16::from_be_bytes([*message.get(at + 1)?, *message.get(at + 2)?]))
}

const HEADER: usize = 12;
const REQUESTS: &str = "istio_dns_requests_total";
const UPSTREAM_REQUESTS: &str = "istio_dns_upstream_requests_total";
const UPSTREAM_FAILURES: &str = "istio_dns_upstream_failures_total";
pub(super) const DURATION: &str = "istio_dns_upstream_request_duration_seconds";
pub(super) const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_read_from_the_question() {
        let query = |kind: u8| [&[0; 12][..], b"\x01a\x02bc\x00", &[0, kind, 0, 1]].concat();
        assert_eq!(query_type(&query(1)), "a");
        assert_eq!(query_type(&query(28)), "aaaa");
        assert_eq!(query_type(&query(99)), "other");
        let whole = query(1);
        for cut in 0..whole.len() - 2 {
            assert_eq!(query_type(&whole[..cut]), "unknown", "{cut} bytes");
        }
    }
}
