//! What a ztunnel gets from mesh-control: its certificate, its world, its policies; and that it becomes ready by that.

use crate::fixture::Mesh;
use crate::issuer::Issuer;
use crate::ztunnel::{Ztunnel, binary, entry, named};

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-web, namespace: shop}\nspec:\n  selector: {matchLabels: {app: orders}}\n  rules: [{from: [{source: {principals: [mesh.internal/ns/shop/sa/web]}}]}]\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn a_jwt_makes_it_ready_with_its_certificate_world_and_policies() {
    if binary().is_none() {
        return;
    }
    let issuer = Issuer::new();
    let mut mesh = Mesh::start_with(&issuer.config());
    mesh.apply(POLICY);
    let orders = Ztunnel::new(&mut mesh, "shop/orders-1/orders", &issuer.token("shop:orders"));
    mesh.apply(&entry("shop", "orders-1", "orders", &orders.machine.ip4));
    let orders = orders.start();
    let dump = orders.wait_dump("its own workload", |dump| {
        named(dump, "workloads", "orders-1").is_some()
    });
    let own = named(&dump, "workloads", "orders-1").unwrap();
    assert_eq!(own["protocol"], "HBONE", "{own}");
    assert_eq!(own["serviceAccount"], "orders", "{own}");
    assert_eq!(own["trustDomain"], "mesh.internal", "{own}");
    let policies = own["authorizationPolicies"].to_string();
    for policy in ["shop/only-web", "mesh-system/istio_converted_static_strict"] {
        assert!(policies.contains(policy), "{own}");
    }
    let (only, strict) = (
        named(&dump, "policies", "only-web").unwrap(),
        named(&dump, "policies", "istio_converted_static_strict").unwrap(),
    );
    assert_eq!((&only["action"], &strict["action"]), (&"Allow".into(), &"Deny".into()));
    let service = named(&dump, "services", "orders").unwrap();
    assert!(service["vips"].to_string().contains("240.240."), "{service}");
    let certificates = orders.certificates(&mesh);
    assert!(
        certificates.contains("spiffe://mesh.internal/ns/shop/sa/orders"),
        "{certificates}"
    );
}

#[test]
fn on_demand_with_a_join_token_it_gets_its_own_workload() {
    if binary().is_none() {
        return;
    }
    let mut mesh = Mesh::start();
    let token = mesh.token("shop/orders");
    let orders = Ztunnel::new(&mut mesh, "shop/orders-1/orders", &token).with("XDS_ON_DEMAND", "true");
    mesh.apply(&entry("shop", "orders-1", "orders", &orders.machine.ip4));
    mesh.apply(&entry("shop", "other", "web", "10.77.0.200"));
    let orders = orders.start();
    let dump = orders.wait_dump("its own workload", |dump| {
        named(dump, "workloads", "orders-1").is_some()
    });
    assert!(named(&dump, "workloads", "other").is_none(), "{dump}");
    let certificates = orders.certificates(&mesh);
    assert!(
        certificates.contains("spiffe://mesh.internal/ns/shop/sa/orders"),
        "{certificates}"
    );
}

#[test]
fn it_is_registered_in_the_group_that_it_asks_for() {
    if binary().is_none() {
        return;
    }
    let mut mesh = Mesh::start();
    let token = mesh.token("shop/orders");
    let orders = Ztunnel::new(&mut mesh, "shop/orders-10.77.0.2/orders", &token);
    assert_eq!(orders.machine.ip4, "10.77.0.2", "the name above is made of it");
    let orders = orders.with("ISTIO_META_AUTO_REGISTER_GROUP", "orders").start();
    orders.wait_dump("its own workload", |dump| {
        named(dump, "workloads", "orders-10.77.0.2").is_some()
    });
    let entries = mesh.ctl_json(&["get", "we", "-n", "shop"]);
    assert_eq!(entries[0]["metadata"]["name"], "orders-10.77.0.2", "{entries}");
    let agents = mesh.ctl_json(&["agents"]);
    assert_eq!(agents[0]["state"], "connected", "{agents}");
    drop(orders);
    mesh_lab::wait_until(crate::fixture::SOON, "its entry to go", || {
        mesh.ctl_json(&["get", "we", "-n", "shop"])
            .as_array()
            .is_some_and(Vec::is_empty)
    });
}
