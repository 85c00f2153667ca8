//! Who may, who may not, and that everybody learns why.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::fixture::{GROUPS, Machine, Mesh, SOON, text};
use mesh_lab::{wait_for, wait_until};

use crate::tools::Tools as _;

const DENY_WEB: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-web, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  action: DENY
  rules:
  - from: [{source: {principals: [mesh.internal/ns/shop/sa/web]}}]
"#;

const STRICT: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec:
  mtls: {mode: STRICT}
"#;

#[test]
fn a_denial_names_its_policy_on_every_surface() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let guest = mesh.member("guest", "other/guest");
    let _nginx = orders.nginx(8080, "secret");
    let _ = web.wait_get("http://orders.shop.mesh.internal/");

    mesh.apply(DENY_WEB);
    wait_until(SOON, "the policy to be in force", || !curl_succeeds(&web));
    let output = web.curl(&["-v", "http://orders.shop.mesh.internal/"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("No route to host") || said.contains("ermission denied"),
        "{said}"
    );
    orders.wait_log(&["access", "policy rejection", "shop/no-web"]);
    web.wait_log(&["access", "401", "shop/no-web"]);
    for machine in [&orders, &web] {
        let metrics = machine.get("http://127.0.0.1:15020/metrics");
        let denials = metrics
            .lines()
            .find(|line| line.starts_with("mesh_agent_denials_total") && line.contains("shop/no-web"));
        assert!(denials.is_some(), "{}: {metrics}", machine.name);
    }
    for (source, code, words) in [
        ("self", 5, "explicitly denied by: shop/no-web"),
        ("spiffe://mesh.internal/ns/shop/sa/web", 5, "shop/no-web"),
        ("spiffe://mesh.internal/ns/other/sa/guest", 0, "no policy denies it"),
        ("10.77.0.250", 0, "no identity, in plain"),
    ] {
        let output = web.try_agent(&["why", source, "orders.shop.mesh.internal:80"]);
        assert_eq!(output.status.code(), Some(code), "{source}: {}", text(&output));
        assert!(text(&output).contains(words), "{source}: {}", text(&output));
    }
    let answer = web.try_agent(&["why", "self", &format!("{}:8080", orders.ip4), "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!(answer["endpoints"][0]["policies"][0], "shop/no-web", "{answer}");
    assert_eq!(web.try_agent(&["why", "self", "nobody:80"]).status.code(), Some(1));
    // Others are not concerned.
    assert_eq!(guest.wait_get("http://orders.shop.mesh.internal/"), "secret");

    mesh.ctl(&["delete", "authorizationpolicy", "no-web", "-n", "shop"]);
    wait_until(SOON, "the policy to be gone", || curl_succeeds(&web));
}

#[test]
fn live_flows_are_cut_within_a_second() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON).unwrap());
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut echo = [0; 4];
    stream.write_all(b"live").unwrap();
    stream.read_exact(&mut echo).unwrap();

    mesh.apply(DENY_WEB);
    let applied = Instant::now();
    assert_eq!(
        stream.read(&mut echo).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    let took = applied.elapsed();
    assert!(took < Duration::from_secs(1), "cut after {took:?}");
    orders.wait_log(&["access", "policy change", "shop/no-web"]);
    web.wait_log(&["access", "policy change", "shop/no-web"]);
}

#[test]
fn a_live_flow_is_cut_when_its_machine_gets_labels_that_a_policy_selects() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let to = format!("{}:80", web.host.resolve("orders.shop.mesh.internal"));
    mesh.apply(&DENY_WEB.replace("app: orders", "stage: closed"));
    let mut stream = web.host.connect(&to).unwrap();
    let mut echo = [0; 4];
    let mut ping = || {
        stream.write_all(b"live")?;
        stream.read_exact(&mut echo)
    };
    ping().unwrap();
    // A label that no policy selects: the machine is registered anew, and nothing is cut.
    let group = |labels: &str| {
        let group = GROUPS
            .split("---\n")
            .find(|one| one.contains("name: orders, namespace: shop"));
        group.unwrap().replace("app: orders", labels)
    };
    let labels = |wanted: &str| {
        wait_until(SOON, &format!("the labels {wanted}"), || {
            let entries = mesh.ctl(&["get", "we", "-n", "shop", "-o", "json"]);
            entries.contains(wanted) && orders.status()["control"]["connected"] == true
        });
    };
    mesh.apply(&group("app: orders, stage: open"));
    labels("open");
    ping().unwrap();

    mesh.apply(&group("app: orders, stage: closed"));
    let applied = Instant::now();
    let end = stream.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset, "{end}");
    let took = applied.elapsed();
    assert!(took < Duration::from_secs(2), "cut after {took:?}");
    orders.wait_log(&["access", "policy change", "shop/no-web"]);
    assert!(web.host.connect(&to).is_err(), "a new flow");

    mesh.apply(&group("app: orders"));
    wait_until(SOON, "new flows to be let in", || web.host.connect(&to).is_ok());
}

#[test]
fn strict_shuts_out_plaintext_and_nothing_else() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let outsider = mesh.machine("outsider");
    let _nginx = orders.nginx(8080, "orders");
    let _ssh = orders.host.echo_server("0.0.0.0:22");
    let direct = format!("http://{}:8080/", orders.ip4);
    assert_eq!(outsider.get(&direct), "orders");
    assert_eq!(web.wait_get("http://orders.shop.mesh.internal/"), "orders");

    mesh.apply(STRICT);
    wait_until(SOON, "plaintext to be refused", || {
        !outsider.curl(&["-f", "--max-time", "2", &direct]).status.success()
    });
    assert_eq!(web.get("http://orders.shop.mesh.internal/"), "orders");
    let ssh = outsider.host.enter(|| {
        let mut stream = TcpStream::connect_timeout(&format!("{}:22", orders.ip4).parse().unwrap(), SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"ssh")?;
        let mut echo = [0; 3];
        stream.read_exact(&mut echo).map(|()| echo)
    });
    assert_eq!(&ssh.unwrap(), b"ssh");

    // A crash and a restart open no gap, even without the control plane.
    let mut orders = orders;
    mesh.kill_control();
    orders.kill();
    orders.start();
    wait_until(SOON, "the daemon to run again", || {
        let open = outsider.curl(&["-f", "--max-time", "1", &direct]).status.success();
        assert!(!open, "plaintext got in during a restart");
        orders.status()["state"] == "member"
    });
    assert!(!outsider.curl(&["-f", "--max-time", "1", &direct]).status.success());
    mesh.start_control();
    orders.wait_ready();

    mesh.ctl(&["delete", "peerauthentication", "strict", "-n", "shop"]);
    assert_eq!(outsider.wait_get(&direct), "orders");
}

#[test]
fn a_plaintext_connection_is_cut_when_it_is_forbidden() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let outsider = mesh.machine("outsider");
    let listener = orders.host.enter(|| TcpListener::bind("0.0.0.0:8080").unwrap());
    let mut client = outsider.host.connect(&format!("{}:8080", orders.ip4)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(b"live").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();

    mesh.apply(STRICT);
    let applied = Instant::now();
    // Both sides go on to send; the outsider's first packet after the change is what is refused.
    let end = wait_for(SOON, "the connection to be cut", || client.write_all(b"more").err());
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset, "{end}");
    let took = applied.elapsed();
    assert!(took < Duration::from_secs(1), "cut after {took:?}");
    // Our application hears of it as well, as soon as it sends, and not only when conntrack has forgotten (10 s).
    wait_for(Duration::from_secs(5), "the application to be told", || {
        server.write_all(b"answer").err()
    });
}

#[test]
fn connect_targets_other_than_our_own_are_refused() {
    // What an authenticated peer may ask for is tested on the wire in tests/tunnel.rs; here: the ports that are the
    // agent's own cannot be reached through the mesh.
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    for port in [15008, 15020, 15021] {
        let address = format!("{}:{port}", orders.ip4).parse().unwrap();
        let result = web.host.enter(|| TcpStream::connect_timeout(&address, SOON));
        assert!(result.is_err(), "port {port} was reached");
    }
    web.wait_log(&["access", "http status: 503"]);
}

fn curl_succeeds(machine: &Machine) -> bool {
    machine
        .curl(&["-f", "--max-time", "3", "http://orders.shop.mesh.internal/"])
        .status
        .success()
}
