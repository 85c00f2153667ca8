//! Arbitrary bytes as the head of a CONNECT and of its answer: no panic, and what is accepted reads back as the same. What the
//! heads say is read as the agent reads it: authority, baggage, trace, and an offer of HTTP/3.
#![no_main]

use std::net::IpAddr;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mesh_core::baggage::Baggage;
use mesh_core::connect::{ConnectHead, Request, ResponseHead};
use mesh_core::h3::head::{decode_request, decode_response, encode_request, encode_response};
use mesh_core::inbound::{Asked, deliver};
use mesh_core::trace::TraceParent;
use mesh_core::world::{Workload, World, convert};
use mesh_proto::istio::workload as proto;

/// Ports that nobody may be led to.
const OWN_PORTS: [u16; 2] = [15008, 53];

/// A member with an address of each family, which serves one service.
fn own() -> &'static Workload {
    static OWN: OnceLock<Workload> = OnceLock::new();
    OWN.get_or_init(|| {
        let record = proto::Workload {
            uid: "own".into(),
            namespace: "shop".into(),
            addresses: vec![vec![10, 9, 9, 9], [0xfd; 16].into()],
            ..proto::Workload::default()
        };
        convert::workload(record, &mut convert::Names::default()).expect("a record that is complete")
    })
}

fn read(head: &ConnectHead) {
    let asked = Asked {
        authority: &head.authority,
        forwarded: head.forwarded.as_deref(),
        local: IpAddr::from([10, 9, 9, 9]),
    };
    if let Ok(delivery) = deliver(&World::default(), own(), &asked, &OWN_PORTS) {
        assert!(own().addresses.contains(&delivery.to.ip()), "{delivery:?}");
        assert!(
            delivery.to.port() != 0 && !OWN_PORTS.contains(&delivery.to.port()),
            "{delivery:?}"
        );
    }
    let _ = Baggage::parse(head.baggage.as_deref().unwrap_or_default());
    let header = head.traceparent.as_deref().unwrap_or_default();
    if let Ok(trace) = header.parse::<TraceParent>() {
        assert_eq!(trace.to_string(), header);
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Request::Connect(head)) = decode_request(bytes) {
        read(&head);
        assert_eq!(decode_request(&encode_request(&head)), Ok(Request::Connect(head)));
    }
    if let Ok(head) = decode_response(bytes) {
        let _ = head.offers_http3(15008);
        assert_eq!(decode_response(&encode_response(&head)), Ok(head));
    }
    // The same text in each place, so that no field section has to be found first.
    let text = String::from_utf8_lossy(bytes).into_owned();
    read(&ConnectHead::from_headers(text.clone(), |_| Some(text.clone())));
    let _ = ResponseHead::from_headers(200, |_| Some(text.clone())).offers_http3(15008);
});
