//! The headers of a CONNECT as Istio has them (as ztunnel does it).

use std::net::SocketAddr;

use mesh_core::world::Workload;

/// Who the source workload is, for telemetry on the other side. Empty fields are left out.
pub fn baggage(workload: &Workload) -> String {
    let kind = match workload.workload_type {
        1 => "cronjob",
        2 => "pod",
        3 => "job",
        _ => "deployment",
    };
    let owner = format!("k8s.{kind}.name");
    let fields: [(&str, &str); 7] = [
        ("k8s.cluster.name", &workload.cluster_id),
        ("k8s.namespace.name", &workload.namespace),
        (&owner, &workload.workload_name),
        ("service.name", &workload.canonical_name),
        ("service.version", &workload.canonical_revision),
        ("cloud.region", &workload.locality.region),
        ("cloud.availability_zone", &workload.locality.zone),
    ];
    let present = fields.iter().filter(|(_, value)| !value.is_empty());
    present
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// RFC 7239: for whom we connect, and to which service.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> String {
    let host = host.map(|host| format!(";host={host}")).unwrap_or_default();
    format!("for=\"{client}\"{host}")
}

/// W3C trace context with fresh ids, not sampled: the application's own headers are not seen here.
pub fn fresh_traceparent() -> String {
    let mut ids = [0; 24];
    // Ids need not be secret; without randomness there is simply no trace.
    let _ = aws_lc_rs::rand::fill(&mut ids);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("00-{}-{}-00", hex(&ids[..16]), hex(&ids[16..]))
}
