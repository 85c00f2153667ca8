//! Traffic between two ztunnels that mesh-control governs: carried, refused, and cut.

use std::io::{Read, Write};

use mesh_lab::{Proc, wait_until};

use crate::fixture::{Mesh, SOON};
use crate::issuer::Issuer;
use crate::tools::Tools as _;
use crate::ztunnel::{Ztunnel, binary, entry, named};

/// For the whole namespace: a ztunnel judges open connections by the workload as it was when they came, so that a policy which the
/// workload names only now would not cut them.
pub const DENY_WEB: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-web, namespace: shop}\nspec:\n  action: DENY\n  rules: [{from: [{source: {principals: [mesh.internal/ns/shop/sa/web]}}]}]\n";
const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

/// A service with an address that the test knows.
pub const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: known, namespace: shop}\nspec: {clusterIP: 10.96.0.10, selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}\n";
pub const URL: &str = "http://10.96.0.10/";

/// A client and a server of the shop, each with its ztunnel; nginx answers on the server's port 8080.
struct Pair {
    mesh: Mesh,
    web: Ztunnel,
    orders: Ztunnel,
    _nginx: Proc,
}

impl Pair {
    fn start(more: &[(&str, &str)]) -> Self {
        let issuer = Issuer::new();
        let mut mesh = Mesh::start_with(&issuer.config());
        let mut machine = |account: &str| {
            let workload = format!("shop/{account}-1/{account}");
            let token = issuer.token(&format!("shop:{account}"));
            let made = Ztunnel::new(&mut mesh, &workload, &token);
            mesh.apply(&entry("shop", &format!("{account}-1"), account, &made.machine.ip4));
            more.iter()
                .fold(made, |made, (key, value)| made.with(key, value))
                .start()
        };
        let (orders, web) = (machine("orders"), machine("web"));
        let nginx = orders.machine.nginx(8080, "answered by orders");
        mesh.apply(SERVICE);
        Self {
            mesh,
            web,
            orders,
            _nginx: nginx,
        }
    }

    fn web_gets(&self) -> bool {
        self.web.machine.curl(&["-f", "--max-time", "3", URL]).status.success()
    }
}

#[test]
fn a_service_and_an_address_are_reached_over_hbone() {
    if binary().is_none() {
        return;
    }
    let pair = Pair::start(&[]);
    let dump = pair
        .web
        .wait_dump("the service", |dump| named(dump, "services", "orders").is_some());
    let vips = named(&dump, "services", "orders").unwrap()["vips"].to_string();
    let automatic = vips.split('"').find_map(|vip| vip.strip_prefix("/240.240.")).unwrap();
    let capture = pair.mesh.sniff();
    assert_eq!(pair.web.machine.wait_get(URL), "answered by orders");
    let direct = format!("http://{}:8080/", pair.orders.machine.ip4);
    assert_eq!(pair.web.machine.get(&direct), "answered by orders");
    let automatic = format!("http://240.240.{automatic}/");
    assert_eq!(pair.web.machine.get(&automatic), "answered by orders");
    let wire = capture.stop();
    assert!(
        !crate::fixture::saw(&wire, b"answered by orders"),
        "in plain on the wire"
    );
    pair.orders.wait_log(&[
        "connection complete",
        "spiffe://mesh.internal/ns/shop/sa/web",
        "inbound",
    ]);
}

#[test]
fn on_demand_the_same() {
    if binary().is_none() {
        return;
    }
    let pair = Pair::start(&[("XDS_ON_DEMAND", "true")]);
    assert_eq!(pair.web.machine.wait_get(URL), "answered by orders");
    let direct = format!("http://{}:8080/", pair.orders.machine.ip4);
    assert_eq!(pair.web.machine.get(&direct), "answered by orders");
    pair.orders.wait_log(&[
        "connection complete",
        "spiffe://mesh.internal/ns/shop/sa/web",
        "inbound",
    ]);
}

#[test]
fn a_policy_denies_cuts_what_is_open_and_lets_in_again() {
    if binary().is_none() {
        return;
    }
    let pair = Pair::start(&[]);
    let _echo = pair.orders.machine.host.echo_server("0.0.0.0:7000");
    assert_eq!(pair.web.machine.wait_get(URL), "answered by orders");
    let to = format!("{}:7000", pair.orders.machine.ip4);
    let mut open = pair.web.machine.host.connect(&to).unwrap();
    let mut ping = || {
        let mut byte = [0];
        open.write_all(b"x").and_then(|()| open.read_exact(&mut byte))
    };
    ping().unwrap();
    pair.mesh.apply(DENY_WEB);
    wait_until(SOON, "the open connection to be cut", || ping().is_err());
    wait_until(SOON, "new connections to be refused", || !pair.web_gets());
    pair.orders.wait_log(&["policy rejection", "shop/no-web"]);
    pair.mesh
        .ctl(&["delete", "authorizationpolicy", "no-web", "-n", "shop"]);
    assert_eq!(pair.web.machine.wait_get(URL), "answered by orders");
}

#[test]
fn strict_refuses_plaintext_and_nothing_else() {
    if binary().is_none() {
        return;
    }
    let mut pair = Pair::start(&[]);
    let outsider = pair.mesh.machine("outsider");
    let direct = format!("http://{}:8080/", pair.orders.machine.ip4);
    assert_eq!(outsider.wait_get(&direct), "answered by orders");
    pair.mesh.apply(STRICT);
    wait_until(SOON, "plaintext to be refused", || {
        !outsider.curl(&["-f", "--max-time", "3", &direct]).status.success()
    });
    assert_eq!(pair.web.machine.wait_get(URL), "answered by orders");
    let exception = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: port, namespace: shop}\nspec:\n  selector: {matchLabels: {app: orders}}\n  portLevelMtls: {8080: {mode: PERMISSIVE}}\n";
    pair.mesh.apply(exception);
    assert_eq!(outsider.wait_get(&direct), "answered by orders");
}
