#![allow(clippy::unwrap_used)]
use super::*;
use mesh_proto::istio::security::{Action, Scope};
use mesh_proto::istio::workload::TunnelProtocol;
use mesh_proto::istio::workload::load_balancing::Mode;
use mesh_proto::mesh::SourceDocument;

pub(super) fn derive(yaml: &str) -> World {
    with_input(yaml, world)
}

/// Gives what `look` makes of these documents.
pub(super) fn with_input<T>(yaml: &str, look: impl FnOnce(&Input<'_>) -> T) -> T {
    let resources: Vec<Resource> = yaml
        .split("---\n")
        .filter_map(|text| {
            let document = SourceDocument {
                yaml: text.to_owned(),
                ..SourceDocument::default()
            };
            Resource::parse(&document).unwrap_or_else(|p| panic!("{p:?}\n{text}"))
        })
        .collect();
    let vips = vip_owners(&resources).into_iter().zip(1..).collect();
    look(&Input {
        trust_domain: "mesh.internal",
        dns_domain: "mesh.internal",
        cluster_id: "mesh",
        resources: &resources,
        vips: &vips,
    })
}

pub(super) const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.0.0.1, ports: {http: 8080}, weight: 3, locality: r/z, serviceAccount: orders, labels: {app: orders, networking.istio.io/tunnel: http}}\n";

#[test]
fn an_entry_says_that_its_machine_speaks_hbone3() {
    let extensions = |annotations: &str| {
        let entry = ENTRY.replace(
            "namespace: shop}",
            &format!("namespace: shop, annotations: {{{annotations}}}}}"),
        );
        let world = derive(&entry);
        let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/shop/vm"];
        workload
            .extensions
            .iter()
            .map(|one| one.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(extensions("mesh.internal/hbone3: 'true'"), ["mesh.v1.hbone3"]);
    assert!(extensions("mesh.internal/hbone3: 'false'").is_empty());
    assert!(extensions("other: 'true'").is_empty());
}

#[test]
fn a_workload_entry_behind_a_service_entry() {
    let world = derive(&format!(
        "{ENTRY}---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: orders, namespace: shop}}\nspec:\n  hosts: [orders.example]\n  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 90, name: other, targetPort: 9090}}]\n  resolution: STATIC\n  workloadSelector: {{labels: {{app: orders}}}}\n"
    ));
    let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/shop/vm"];
    assert_eq!(workload.addresses, [vec![10, 0, 0, 1]]);
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::Hbone);
    assert_eq!(
        (workload.service_account.as_str(), workload.capacity),
        ("orders", Some(3))
    );
    assert_eq!(workload.canonical_name, "orders");
    assert_eq!(workload.locality.as_ref().unwrap().zone, "z");
    let keys: Vec<_> = workload.services.keys().cloned().collect();
    assert_eq!(keys, ["shop/orders.example", "shop/orders.shop.mesh.internal"]);
    let targets: Vec<_> = workload.services["shop/orders.example"]
        .ports
        .iter()
        .map(|p| (p.service_port, p.target_port))
        .collect();
    assert_eq!(targets, [(80, 8080), (90, 9090)]);
    let service = &world.services["shop/orders.shop.mesh.internal"];
    let addresses: Vec<_> = service.addresses.iter().map(|a| a.address.len()).collect();
    assert_eq!(addresses, [4, 16]);
    assert_eq!(service.addresses[0].address, [240, 240, 0, 1]);
    assert_eq!(service.addresses, world.services["shop/orders.example"].addresses);
}

#[test]
fn a_service_selects_in_its_namespace_and_resolves_named_ports() {
    let world = derive(&format!(
        "{ENTRY}---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: shop}}\nspec: {{selector: {{app: orders}}, ports: [{{port: 80, targetPort: http}}, {{port: 81, targetPort: gone}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: b, namespace: other}}\nspec: {{clusterIP: None, selector: {{app: orders}}, ports: [{{port: 80}}]}}\n"
    ));
    let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/shop/vm"];
    assert_eq!(workload.services.len(), 2);
    let ports = &workload.services["shop/a.shop.svc.cluster.local"].ports;
    assert_eq!((ports.len(), ports[0].target_port), (1, 8080));
    assert_eq!(world.services["shop/a.shop.mesh.internal"].ports[0].target_port, 0);
    assert!(world.services["other/b.other.mesh.internal"].addresses.is_empty());
}

#[test]
fn resolutions_and_visibility() {
    let world = derive(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: none, namespace: a}\nspec: {hosts: [n.example], addresses: [10.1.0.0/16], ports: [{number: 1, name: x}], exportTo: ['.']}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: dns, namespace: a}\nspec: {hosts: [d.example], resolution: DNS, ports: [{number: 1, name: x}], endpoints: [{address: backend.example}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: self, namespace: a}\nspec: {hosts: [s.example], resolution: DNS, ports: [{number: 1, name: x}]}\n",
    );
    let none = &world.services["a/n.example"];
    assert_eq!(none.load_balancing.as_ref().unwrap().mode(), Mode::Passthrough);
    assert_eq!(none.addresses[0].length, Some(16));
    assert_eq!(none.visibility, 1);
    let dns = &world.workloads["mesh/networking.istio.io/ServiceEntry/a/dns/backend.example"];
    assert_eq!(dns.hostname, "backend.example");
    assert_eq!(dns.services.len(), 2);
    assert!(
        world
            .workloads
            .contains_key("mesh/networking.istio.io/ServiceEntry/a/self/s.example")
    );
}

#[test]
fn policies_by_scope_and_shape() {
    let world = derive(&format!(
        "{ENTRY}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: all, namespace: mesh-system, annotations: {{istio.io/dry-run: 'true'}}}}\nspec: {{}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ns, namespace: shop}}\nspec: {{action: DENY, rules: [{{}}]}}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: sel, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: orders}}}}\n  rules:\n  - from: [{{source: {{principals: ['*/sa/web', 'td/*', '*', exact], serviceAccounts: []}}}}]\n    to: [{{operation: {{ports: ['80']}}}}]\n    when: [{{key: source.ip, notValues: [10.0.0.0/8]}}]\n"
    ));
    let all = &world.policies["mesh-system/all"];
    assert!(all.dry_run);
    assert_eq!(
        (all.scope(), all.action(), all.rules.len()),
        (Scope::Global, Action::Allow, 0)
    );
    let ns = &world.policies["shop/ns"];
    assert_eq!((ns.scope(), ns.action()), (Scope::Namespace, Action::Deny));
    assert!(ns.rules[0].clauses.is_empty());
    let selected = &world.policies["shop/sel"];
    assert_eq!(selected.scope(), Scope::WorkloadSelector);
    assert_eq!(selected.rules[0].clauses.len(), 3);
    let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/shop/vm"];
    assert_eq!(workload.authorization_policies, ["shop/sel"]);
}

#[test]
fn peer_authentication_table() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: NS}\nspec: {mtls: {mode: MODE}}\n---\n";
    let of = |ns: &str, mode: &str| strict.replace("NS", ns).replace("MODE", mode);
    let ports = |mode: &str, port: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: orders}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{8080: {{mode: {port}}}}}}}\n---\n"
        )
    };
    let static_strict = "mesh-system/istio_converted_static_strict";
    let converted = "shop/converted_peer_authentication_p";
    for (yaml, expected) in [
        (String::new(), vec![]),
        (of("mesh-system", "STRICT"), vec![static_strict]),
        (of("shop", "STRICT"), vec![static_strict]),
        (of("mesh-system", "STRICT") + &of("shop", "PERMISSIVE"), vec![]),
        (of("mesh-system", "STRICT") + &of("shop", "UNSET"), vec![static_strict]),
        (ports("STRICT", "DISABLE"), vec![converted]),
        (ports("STRICT", "STRICT"), vec![static_strict]),
        (ports("PERMISSIVE", "STRICT"), vec![converted]),
        (of("shop", "STRICT") + &ports("UNSET", "PERMISSIVE"), vec![converted]),
        (of("shop", "STRICT") + &ports("DISABLE", "PERMISSIVE"), vec![]),
    ] {
        let world = derive(&format!("{yaml}{ENTRY}"));
        let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/shop/vm"];
        assert_eq!(workload.authorization_policies, expected, "{yaml}");
        for key in expected {
            assert!(world.policies.contains_key(key), "{key} for {yaml}");
        }
    }
}

#[test]
fn each_host_of_a_dns_service_is_the_endpoint_of_its_own() {
    let world = derive(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: two, namespace: a}\nspec: {hosts: [one.example, two.example], resolution: DNS, ports: [{number: 1, name: x}]}\n",
    );
    let services = |host: &str| {
        let uid = format!("mesh/networking.istio.io/ServiceEntry/a/two/{host}");
        world.workloads[&uid].services.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(services("one.example"), ["a/one.example", "a/two.a.mesh.internal"]);
    assert_eq!(services("two.example"), ["a/two.a.mesh.internal", "a/two.example"]);
}

#[test]
fn endpoints_have_the_labels_of_their_service_entry() {
    let world = derive(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: s, namespace: a, labels: {app: db, networking.istio.io/tunnel: http}}\nspec: {hosts: [s.example], resolution: STATIC, ports: [{number: 1, name: x}], endpoints: [{address: 10.0.0.1, weight: 0}, {address: 10.0.0.2, labels: {app: own}}]}\n",
    );
    let of = |address: &str| &world.workloads[&format!("mesh/networking.istio.io/ServiceEntry/a/s/{address}")];
    let (first, second) = (of("10.0.0.1"), of("10.0.0.2"));
    assert_eq!(
        (first.canonical_name.as_str(), second.canonical_name.as_str()),
        ("db", "own")
    );
    assert_eq!(second.tunnel_protocol(), TunnelProtocol::Hbone);
    assert!(second.native_tunnel);
    assert_eq!(first.capacity, None, "a weight of 0 is none, as in Istio");
}

#[test]
fn names_that_telemetry_uses() {
    let entry = |more: &str| {
        let world = derive(&format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: a, {more}}}\nspec: {{address: 10.0.0.1}}\n"
        ));
        let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/a/vm"];
        (
            workload.workload_name.clone(),
            workload.canonical_name.clone(),
            workload.tunnel_protocol(),
        )
    };
    let of = |name: &str, canonical: &str| (name.to_owned(), canonical.to_owned());
    for (more, expected) in [
        ("", of("vm", "vm")),
        ("annotations: {istio.io/autoRegistrationGroup: web}", of("web", "web")),
        ("labels: {service.istio.io/workload-name: w, app: a}", of("w", "a")),
        (
            "labels: {app: a, app.kubernetes.io/name: k, service.istio.io/canonical-name: c}",
            of("vm", "c"),
        ),
    ] {
        let (name, canonical, tunnel) = entry(more);
        assert_eq!((name, canonical), expected, "{more}");
        assert_eq!(tunnel, TunnelProtocol::None, "{more}");
    }
    assert_eq!(
        entry("annotations: {ambient.istio.io/redirection: enabled}").2,
        TunnelProtocol::Hbone
    );
}

#[test]
fn an_endpoints_port_of_a_services_port_name_goes_before_the_number() {
    let world = derive(&format!(
        "{ENTRY}---\napiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: shop}}\nspec: {{selector: {{app: orders}}, ports: [{{port: 80, name: http, targetPort: 9}}, {{port: 81, name: x, targetPort: 9}}]}}\n"
    ));
    let workload = &world.workloads["mesh/networking.istio.io/WorkloadEntry/shop/vm"];
    let ports = &workload.services["shop/a.shop.mesh.internal"].ports;
    assert_eq!((ports[0].target_port, ports[1].target_port), (8080, 9));
}
