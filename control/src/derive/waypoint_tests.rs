#![allow(clippy::unwrap_used)]
use mesh_proto::istio::workload::application_tunnel::Protocol;
use mesh_proto::istio::workload::gateway_address::Destination;

use super::tests::{ENTRY, derive, with_input};
use super::*;

/// A waypoint `w` of namespace `shop`, with more in its metadata and its listener, and where it is.
fn gateway(metadata: &str, listener: &str, addresses: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: shop, {metadata}}}\nspec:\n  gatewayClassName: istio-waypoint\n  addresses: [{addresses}]\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE, {listener}}}]\n"
    )
}

fn service(namespace: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{selector: {{app: orders}}, ports: [{{port: 80}}]}}\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// The machine of [`ENTRY`] with these labels more.
fn entry(labels: &str) -> String {
    format!(
        "---\n{}",
        ENTRY.replace("labels: {app", &format!("labels: {{{labels}, app"))
    )
}

const AT: &str = "{value: 10.9.9.9}";

/// Short forms of what the service `s`, and the machine of [`ENTRY`], are told of a waypoint.
fn waypoints(yaml: &str) -> (String, String) {
    let world = derive(yaml);
    let short = |address: Option<&workload::GatewayAddress>| match address.map(|one| (one, &one.destination)) {
        None => "-".to_owned(),
        Some((one, Some(Destination::Hostname(at)))) => {
            format!("{}/{}:{}", at.namespace, at.hostname, one.hbone_mtls_port)
        }
        Some((one, Some(Destination::Address(at)))) => {
            format!("{}/{:?}:{}", at.network, at.address, one.hbone_mtls_port)
        }
        Some((_, None)) => panic!("a waypoint that is nowhere"),
    };
    let service = world.services.values().filter(|one| one.name == "s");
    let mut shorts: Vec<_> = service.map(|one| short(one.waypoint.as_ref())).collect();
    shorts.dedup();
    assert!(shorts.len() <= 1, "records of one service differ: {shorts:?}");
    let machine = world.workloads.values().find(|one| one.name == "vm");
    (
        shorts.pop().unwrap_or_default(),
        machine.map_or(String::new(), |one| short(one.waypoint.as_ref())),
    )
}

/// The condition of an object: empty when there is none, else the waypoint's name or the reason.
fn condition(yaml: &str, kind: Kind, name: &str) -> String {
    let bindings = with_input(yaml, waypoint_bindings);
    let found = bindings
        .into_iter()
        .find(|(key, _)| key.kind == kind.as_str() && key.name == name);
    found.map_or(String::new(), |(_, binding)| {
        binding.unwrap_or_else(|unbound| unbound.reason.to_owned())
    })
}

const USE: &str = "istio.io/use-waypoint: w";

#[test]
fn where_a_waypoint_is() {
    let ours = "---\napiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: shop}\nspec: {selector: {app: w}, ports: [{port: 15008}]}\n";
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: w, namespace: shop}\nspec: {hosts: [W.example], resolution: STATIC, ports: [{number: 15008, name: hbone}], endpoints: [{address: 10.9.9.9}]}\n";
    let named = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: v, namespace: shop}\nspec: {address: v.example}\n";
    for (metadata, addresses, more, expected, usable) in [
        ("", AT, "", "/[10, 9, 9, 9]:15008", "AddressNotUsable"),
        ("", AT, entry, "/[10, 9, 9, 9]:15008", "shop/w"),
        (
            "labels: {topology.istio.io/network: n}",
            AT,
            entry,
            "n/[10, 9, 9, 9]:15008",
            "AddressNotUsable",
        ),
        (
            "",
            "{value: 10.9.9.9}, {type: Hostname, value: W.example}",
            entry,
            "shop/w.example:15008",
            "shop/w",
        ),
        (
            "",
            "{type: Hostname, value: x.example}",
            entry,
            "shop/x.example:15008",
            "AddressNotUsable",
        ),
        (
            "",
            "{type: Hostname, value: v.example}",
            named,
            "shop/v.example:15008",
            "shop/w",
        ),
        ("", "", ours, "shop/w.shop.svc.cluster.local:15008", "shop/w"),
        ("", "", entry, "shop/w.example:15008", "shop/w"),
        ("", "", "", "-", "AddressNotAssigned"),
    ] {
        let yaml = gateway(metadata, "", addresses) + &service("shop", USE) + more;
        assert_eq!(waypoints(&yaml).0, expected, "{yaml}");
        assert_eq!(condition(&yaml, Kind::Gateway, "w"), usable, "{yaml}");
        let bound = if expected == "-" {
            "WaypointIsNotReady"
        } else {
            "shop/w"
        };
        assert_eq!(condition(&yaml, Kind::Service, "s"), bound, "{yaml}");
    }
}

#[test]
fn labels_of_the_object_go_before_those_of_its_namespace() {
    let bound = "/[10, 9, 9, 9]:15008";
    let all = gateway("labels: {istio.io/waypoint-for: all}", "", AT);
    for (inherited, own, expected) in [
        ("", "a: b", "-"),
        ("", USE, bound),
        (USE, "a: b", bound),
        (USE, "istio.io/use-waypoint: none", "-"),
        (USE, "istio.io/use-waypoint: gone", "-"),
        ("istio.io/use-waypoint: gone", USE, bound),
        ("istio.io/use-waypoint: none", "a: b", "-"),
        // The namespace of a waypoint stands beside its name.
        ("istio.io/use-waypoint-namespace: far", USE, bound),
        (
            "",
            "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: far",
            "-",
        ),
    ] {
        let yaml = all.clone() + &namespace("shop", inherited) + &service("shop", own) + &entry(own);
        assert_eq!(waypoints(&yaml), (expected.to_owned(), expected.to_owned()), "{yaml}");
    }
    let yaml = all + &service("shop", "istio.io/use-waypoint: gone") + &entry("istio.io/use-waypoint: gone");
    assert_eq!(condition(&yaml, Kind::Service, "s"), "WaypointIsNotReady");
    assert_eq!(condition(&yaml, Kind::WorkloadEntry, "vm"), "WaypointIsNotReady");
}

#[test]
fn a_waypoint_takes_what_it_is_for() {
    let (bound, unsupported) = ("/[10, 9, 9, 9]:15008", "UnsupportedTrafficType");
    for (what, service_waypoint, service_says, machine_waypoint, machine_says) in [
        ("a: b", bound, "shop/w", "-", unsupported),
        ("istio.io/waypoint-for: service", bound, "shop/w", "-", unsupported),
        ("istio.io/waypoint-for: workload", "-", unsupported, bound, "shop/w"),
        ("istio.io/waypoint-for: all", bound, "shop/w", bound, "shop/w"),
        ("istio.io/waypoint-for: none", "-", unsupported, "-", unsupported),
    ] {
        let yaml = gateway(&format!("labels: {{{what}}}"), "", AT) + &service("shop", USE) + &entry(USE);
        let expected = (service_waypoint.to_owned(), machine_waypoint.to_owned());
        assert_eq!(waypoints(&yaml), expected, "{what}");
        assert_eq!(condition(&yaml, Kind::Service, "s"), service_says, "{what}");
        assert_eq!(condition(&yaml, Kind::WorkloadEntry, "vm"), machine_says, "{what}");
    }
    // Inherited, a waypoint for services is nothing that a machine should complain of.
    let yaml = gateway("", "", AT) + &namespace("shop", USE) + &entry("a: b");
    assert_eq!(condition(&yaml, Kind::WorkloadEntry, "vm"), "");
}

#[test]
fn other_namespaces_are_let_in_by_allowed_routes() {
    let far = "istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: shop";
    let denied = ("-", "AttachmentDenied");
    let bound = ("/[10, 9, 9, 9]:15008", "shop/w");
    for (listener, of_namespace, expected) in [
        ("", "", denied),
        ("allowedRoutes: {namespaces: {from: Same}}", "", denied),
        ("allowedRoutes: {namespaces: {from: All}}", "", bound),
        (
            "allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}",
            "team: b",
            denied,
        ),
        (
            "allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}",
            "team: a",
            bound,
        ),
    ] {
        let direct = gateway("", listener, AT) + &namespace("other", of_namespace) + &service("other", far);
        let labels = format!("{far}, {of_namespace}");
        let inherited = gateway("", listener, AT) + &namespace("other", &labels) + &service("other", "a: b");
        for yaml in [direct, inherited] {
            assert_eq!(waypoints(&yaml).0, expected.0, "{yaml}");
            assert_eq!(condition(&yaml, Kind::Service, "s"), expected.1, "{yaml}");
        }
    }
    let entry = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: s, namespace: other, labels: {{{far}}}}}\nspec: {{hosts: [s.example], resolution: STATIC, exportTo: ['.'], ports: [{{number: 80, name: http}}]}}\n"
    );
    let yaml = gateway("", "allowedRoutes: {namespaces: {from: All}}", AT) + &entry;
    assert_eq!(
        condition(&yaml, Kind::ServiceEntry, "s"),
        "CrossNamespaceWaypointForbidden"
    );
    assert_eq!(waypoints(&yaml).0, "-");
}

#[test]
fn a_waypoints_own_service_and_machines_have_no_waypoint() {
    let for_all =
        "labels: {istio.io/waypoint-for: all}, annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}";
    let tunnel = |yaml: &str| {
        let world = derive(yaml);
        let machine = world.workloads.values().find(|one| one.name == "vm").unwrap();
        machine.application_tunnel.map(|one| (one.protocol(), one.port))
    };
    let inherited = namespace("shop", USE);
    let by_label = gateway(for_all, "", AT) + &entry("gateway.networking.k8s.io/gateway-name: w");
    let by_address = gateway(for_all, "", "{value: 10.0.0.1}") + &entry("a: b");
    let by_service = gateway(for_all, "", "{type: Hostname, value: s.shop.svc.cluster.local}")
        + &entry("a: b")
        + &service("shop", "");
    let by_name = gateway(for_all, "", "{type: Hostname, value: v.example}")
        + &entry("a: b").replace("address: 10.0.0.1", "address: v.example");
    for yaml in [by_label, by_address, by_service, by_name] {
        let yaml = yaml + &inherited;
        let (service, machine) = waypoints(&yaml);
        assert!(matches!(service.as_str(), "" | "-"), "{service} {yaml}");
        assert_eq!(machine, "-", "{yaml}");
        assert_eq!(tunnel(&yaml), Some((Protocol::Proxy, 15088)), "{yaml}");
    }
    let other = gateway(for_all, "", AT) + &entry("a: b") + &inherited;
    assert_eq!(
        (waypoints(&other).1.as_str(), tunnel(&other)),
        ("/[10, 9, 9, 9]:15008", None)
    );
    for managed in ["istio.io-mesh-controller", "istio.io-eastwest-controller"] {
        let yaml = gateway("", "", AT) + &inherited + &service("shop", &format!("gateway.istio.io/managed: {managed}"));
        assert_eq!(waypoints(&yaml).0, "-", "{managed}");
    }
}

#[test]
fn endpoints_have_the_waypoint_of_their_own_labels() {
    let yaml = |service: &str, endpoint: &str| {
        gateway("labels: {istio.io/waypoint-for: all}", "", AT)
            + &format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: s, namespace: shop, labels: {{{service}}}}}\nspec: {{hosts: [s.example], resolution: STATIC, ports: [{{number: 80, name: http}}], endpoints: [{{address: 10.0.0.5, labels: {{{endpoint}}}}}]}}\n"
            )
    };
    for (service, endpoint, expected) in [(USE, "a: b", (true, false)), ("a: b", USE, (false, true))] {
        let world = derive(&yaml(service, endpoint));
        let workload = world.workloads.values().next().unwrap();
        let services: Vec<_> = world.services.values().map(|one| one.waypoint.is_some()).collect();
        assert_eq!(
            (services[0], workload.waypoint.is_some()),
            expected,
            "{service} {endpoint}"
        );
        assert_eq!(services[0], services[1]);
    }
}
