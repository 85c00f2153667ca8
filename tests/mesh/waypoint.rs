//! Waypoints: a machine of the mesh, with an application that is told for whom each connection is, stands before another.

use mesh_lab::{Proc, wait_until};

use crate::application::Application;
use crate::fixture::{GROUPS, Machine, Mesh, SOON};
use crate::tools::Tools as _;

const URL: &str = "http://orders.shop.mesh.internal/";
const WEB: &str = "spiffe://mesh.internal/ns/shop/sa/web";
const WAYPOINT: &str = "spiffe://mesh.internal/ns/shop/sa/waypoint";

/// The waypoint's machine, and its service, of which the Gateway has the name.
const AROUND: &str = r"
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: waypoint, namespace: shop}
spec:
  metadata: {labels: {app: waypoint}}
  template: {serviceAccount: waypoint}
---
apiVersion: v1
kind: Service
metadata: {name: w, namespace: shop}
spec: {selector: {app: waypoint}, ports: [{port: 15008}]}
";

/// Only what comes through the waypoint may reach the machine.
const ONLY_BY_WAYPOINT: &str = r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-waypoint, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  rules: [{from: [{source: {principals: [mesh.internal/ns/shop/sa/waypoint]}}]}]
";

/// The Gateway, with more in its metadata and its spec.
fn gateway(metadata: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: shop, {metadata}}}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n{spec}\n"
    )
}

const BINDING: &str = "annotations: {ambient.istio.io/waypoint-inbound-binding: PROXY/15088}";

/// One of the documents of [`GROUPS`] with this label.
fn labelled(kind: &str, name: &str, label: &str) -> String {
    let (kind, meta) = (format!("kind: {kind}\n"), format!("{{name: {name}, namespace: shop}}"));
    let mut documents = GROUPS.split("---\n");
    let document = documents
        .find(|one| one.contains(&kind) && one.contains(&meta))
        .unwrap();
    match kind.contains("Group") {
        true => document.replace("labels: {", &format!("labels: {{{label}, ")),
        false => document.replace(
            &meta,
            &format!("{{name: {name}, namespace: shop, labels: {{{label}}}}}"),
        ),
    }
}

struct Shop {
    mesh: Mesh,
    orders: Machine,
    web: Machine,
    _nginx: Proc,
}

impl Shop {
    /// `orders` behind the waypoint `w` by label, where no waypoint is yet.
    fn start() -> Self {
        let mut mesh = Mesh::start();
        mesh.apply(AROUND);
        let orders = mesh.member("orders", "shop/orders");
        let web = mesh.member("web", "shop/web");
        let nginx = orders.nginx(8080, "answered by orders");
        web.wait_get(URL);
        Self {
            mesh,
            orders,
            web,
            _nginx: nginx,
        }
    }

    fn behind_waypoint(&self) {
        self.mesh
            .apply(&labelled("ServiceEntry", "orders", "istio.io/use-waypoint: w"));
    }

    fn without_waypoint(&self) {
        self.mesh.apply(&labelled("ServiceEntry", "orders", "a: b"));
    }

    /// The machine of the waypoint, whose application sends everything on to where it was meant for.
    fn waypoint(&mut self) -> (Machine, Application) {
        let machine = self.mesh.member("w", "shop/waypoint");
        let application = Application::start(&machine.host, |to| to);
        (machine, application)
    }

    /// Over IPv4, which is what the waypoint's application understands.
    fn gets(&self, url: &str) -> bool {
        let output = self.web.curl(&["-4", "-f", "--max-time", "3", url]);
        output.status.success() && output.stdout == b"answered by orders"
    }
}

#[test]
fn a_service_is_reached_through_its_waypoint_and_directly_without() {
    let mut shop = Shop::start();
    let (w, application) = shop.waypoint();
    shop.mesh.apply(&gateway(BINDING, ""));
    shop.mesh.apply(ONLY_BY_WAYPOINT);
    shop.behind_waypoint();
    let vip = format!("{}:80", shop.web.host.resolve("orders.shop.mesh.internal"));
    let meant = (vip.parse().unwrap(), WEB.to_owned());
    wait_until(SOON, "the waypoint to be passed", || {
        shop.gets(URL) && application.asked().last() == Some(&meant)
    });
    shop.web
        .wait_log(&["access: connection complete", &format!("dst.identity=\"{WAYPOINT}\"")]);
    w.wait_log(&[
        "access: connection complete",
        "inbound",
        &format!("src.identity=\"{WEB}\""),
    ]);
    shop.orders
        .wait_log(&["access: connection complete", &format!("src.identity=\"{WAYPOINT}\"")]);
    let status = shop.mesh.ctl_json(&["get", "se", "orders", "-n", "shop"]);
    assert_eq!(
        status["status"]["conditions"][0]["reason"], "WaypointAccepted",
        "{status}"
    );
    // The waypoint is for the service: to the machine itself there is none, and the policy refuses.
    let direct = format!("http://{}:8080/", shop.orders.ip4);
    assert!(!shop.gets(&direct));

    shop.without_waypoint();
    wait_until(SOON, "the waypoint to be left", || !shop.gets(URL));
    shop.orders.wait_log(&["access", "policy rejection", WEB]);
    let before = application.asked().len();
    shop.mesh
        .ctl(&["delete", "authorizationpolicy", "only-waypoint", "-n", "shop"]);
    wait_until(SOON, "the policy to be gone", || shop.gets(URL));
    assert_eq!(application.asked().len(), before, "it still passed the waypoint");
}

#[test]
fn a_workload_is_reached_through_its_waypoint() {
    let mut shop = Shop::start();
    let (_w, application) = shop.waypoint();
    let for_all = format!("labels: {{istio.io/waypoint-for: workload}}, {BINDING}");
    shop.mesh.apply(&gateway(&for_all, ""));
    shop.mesh
        .apply(&labelled("WorkloadGroup", "orders", "istio.io/use-waypoint: w"));
    shop.mesh.apply(ONLY_BY_WAYPOINT);
    let direct = format!("http://{}:8080/", shop.orders.ip4);
    let to = format!("{}:8080", shop.orders.ip4).parse().unwrap();
    wait_until(SOON, "the waypoint to be passed", || {
        shop.gets(&direct) && application.asked().last() == Some(&(to, WEB.to_owned()))
    });
    // By the service, which has none, a workload's waypoint is not passed.
    wait_until(SOON, "the policy to refuse", || !shop.gets(URL));
}

#[test]
fn a_waypoint_that_cannot_be_reached_is_not_passed_by() {
    let mut shop = Shop::start();
    let guest = shop.mesh.member("guest", "other/guest");
    // Nobody has this name.
    shop.mesh
        .apply(&gateway("", "  addresses: [{type: Hostname, value: gone.example}]"));
    shop.behind_waypoint();
    wait_until(SOON, "the waypoint to be looked for", || {
        !shop.gets(URL) && shop.web.log().contains("unknown waypoint: shop/gone.example")
    });
    // Where it should be there is another machine.
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: w, namespace: shop}}\nspec: {{address: {}, serviceAccount: waypoint, labels: {{app: waypoint, networking.istio.io/tunnel: http}}}}\n",
        guest.ip4
    );
    shop.mesh.apply(&entry);
    shop.mesh.apply(&gateway("", ""));
    wait_until(SOON, "the other machine to be turned away", || {
        assert!(!shop.gets(URL), "it was passed by, or not by who it should be");
        shop.web.log().contains("identity mismatch: the peer is")
    });
    // Where it should be there is nobody.
    shop.mesh.apply(&entry.replace(&guest.ip4, "10.77.0.250"));
    wait_until(SOON, "nobody to answer", || {
        assert!(!shop.gets(URL), "it was passed by");
        shop.web.log().contains("10.77.0.250:15008")
    });
    shop.without_waypoint();
    wait_until(SOON, "the way without a waypoint", || shop.gets(URL));
}

#[test]
fn an_agent_stands_for_nobody_without_an_application_for_it() {
    let mut shop = Shop::start();
    let (w, application) = shop.waypoint();
    shop.mesh.apply(&gateway("", ""));
    shop.behind_waypoint();
    wait_until(SOON, "the waypoint to be asked", || {
        !shop.gets(URL) && w.log().contains("its record has no application tunnel")
    });
    shop.web.wait_log(&["access", "400"]);
    assert!(application.asked().is_empty());
    // With one it does, live.
    shop.mesh.apply(&gateway(BINDING, ""));
    wait_until(SOON, "the waypoint to be passed", || shop.gets(URL));
    assert!(application.asked().iter().all(|one| one.1 == WEB));
    assert!(!application.asked().is_empty());
}
