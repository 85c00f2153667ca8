//! Waypoints that mesh-control derives, as a real ztunnel understands them: before its connections, and as one itself.

use mesh_lab::wait_until;

use crate::agents::ztunnel;
use crate::application::Application;
use crate::fixture::{Mesh, SOON};
use crate::issuer::Issuer;
use crate::traffic::{SERVICE, URL};
use crate::ztunnel::{binary, named};

const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
const WAYPOINT: &str = "spiffe://mesh.internal/ns/shop/sa/waypoint";

const GROUP: &str = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: waypoint, namespace: shop}\nspec:\n  metadata: {labels: {app: waypoint}}\n  template: {serviceAccount: waypoint}\n";

/// The Gateway, at this address.
fn gateway(address: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: shop, annotations: {{ambient.istio.io/waypoint-inbound-binding: PROXY/15088}}}}\nspec:\n  gatewayClassName: istio-waypoint\n  addresses: [{address}]\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n"
    )
}

fn behind_waypoint() -> String {
    SERVICE.replace(
        "namespace: shop}",
        "namespace: shop, labels: {istio.io/use-waypoint: w}}",
    )
}

#[test]
fn a_ztunnel_passes_the_waypoint_that_its_service_has() {
    if binary().is_none() {
        return;
    }
    let issuer = Issuer::new();
    let mut mesh = Mesh::start_with(&issuer.config());
    mesh.apply(GROUP);
    let orders = ztunnel(&mut mesh, &issuer, "orders");
    let _nginx = orders.machine.nginx(8080, "answered by orders");
    let w = mesh.member("w", "shop/waypoint");
    let application = Application::start(&w.host, |to| to);
    mesh.apply(&gateway(&format!("{{value: {}}}", w.ip4)));
    mesh.apply(&behind_waypoint());
    let web = ztunnel(&mut mesh, &issuer, "web");
    let dump = web.wait_dump("the service", |dump| named(dump, "services", "known").is_some());
    let service = named(&dump, "services", "known").unwrap();
    assert!(service["waypoint"].to_string().contains(&w.ip4), "{service}");
    let meant = ("10.96.0.10:80".parse().unwrap(), WEB.to_owned());
    wait_until(SOON, "the waypoint to be passed", || {
        web.machine.wait_get(URL) == "answered by orders" && application.asked().last() == Some(&meant)
    });
    orders.wait_log(&["connection complete", WAYPOINT, "inbound"]);

    // Nobody has this name: nothing passes, by it or past it.
    mesh.apply(&gateway("{type: Hostname, value: gone.example}"));
    wait_until(SOON, "the waypoint to be looked for", || {
        let refused = !web.machine.curl(&["-f", "--max-time", "3", URL]).status.success();
        refused && web.log().contains("unknown waypoint")
    });
    mesh.apply(SERVICE);
    let before = application.asked().len();
    assert_eq!(web.machine.wait_get(URL), "answered by orders");
    assert_eq!(application.asked().len(), before, "it still passed the waypoint");
    orders.wait_log(&["connection complete", WEB, "inbound"]);
}

#[test]
fn a_ztunnel_stands_as_a_waypoint() {
    if binary().is_none() {
        return;
    }
    let issuer = Issuer::new();
    let mut mesh = Mesh::start_with(&issuer.config());
    let orders = mesh.member("orders", "shop/orders");
    let _nginx = orders.nginx(8080, "answered by orders");
    let w = ztunnel(&mut mesh, &issuer, "waypoint");
    // A ztunnel sends what is for a service to its waypoint, also the waypoint's own; real ones choose an endpoint themselves.
    let endpoint = format!("{}:8080", orders.ip4).parse().unwrap();
    let application = Application::start(&w.machine.host, move |_| endpoint);
    mesh.apply(&gateway(&format!("{{value: {}}}", w.machine.ip4)));
    mesh.apply(&behind_waypoint());
    w.wait_dump("its application tunnel", |dump| {
        named(dump, "workloads", "waypoint-1").is_some_and(|own| own["applicationTunnel"]["port"] == 15088)
    });
    let web = mesh.member("web", "shop/web");
    let meant = ("10.96.0.10:80".parse().unwrap(), WEB.to_owned());
    wait_until(SOON, "the waypoint to be passed", || {
        web.wait_get(URL) == "answered by orders" && application.asked().last() == Some(&meant)
    });
    web.wait_log(&["access: connection complete", &format!("dst.identity=\"{WAYPOINT}\"")]);
    orders.wait_log(&["access: connection complete", &format!("src.identity=\"{WAYPOINT}\"")]);
}
