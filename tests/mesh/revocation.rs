//! A machine is put out, and the CA changes its root, while traffic flows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::fixture::{Mesh, SOON};
use mesh_lab::wait_until;

use crate::tools::Tools as _;

#[test]
fn a_revoked_machine_is_cut_off_everywhere_within_five_seconds() {
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

    let agents = mesh.ctl_json(&["agents"]);
    let agent = agents
        .as_array()
        .unwrap()
        .iter()
        .find(|agent| agent["address"] == web.ip4.as_str())
        .unwrap();
    let id = agent["id"].as_str().unwrap();
    mesh.ctl(&["revoke", id]);
    let revoked = Instant::now();
    let end = stream.read(&mut echo);
    let took = revoked.elapsed();
    assert!(end.is_err() || end.is_ok_and(|read| read == 0));
    assert!(took < Duration::from_secs(5), "cut after {took:?}");
    orders.wait_log(&["access", "revoked"]);

    let again = web
        .host
        .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), Duration::from_secs(8)));
    assert!(again.is_err(), "a revoked machine got a new flow");
    assert!(!mesh.ctl(&["get", "workloadentry", "-n", "shop"]).contains(&web.ip4));
    let mut web = web;
    web.stop();
    web.start();
    web.wait_log(&["revoked"]);
}

/// A CA of the operator's, whose key can sign a CRL.
struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    /// Lines for control.toml.
    config: String,
    dir: tempfile::TempDir,
}

impl Ca {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, "our own CA");
        let dir = tempfile::tempdir().unwrap();
        let (root, key_file) = (dir.path().join("root.pem"), dir.path().join("ca.key"));
        std::fs::write(&root, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            config: format!("[ca]\nroot = {root:?}\nkey = {key_file:?}\n"),
            dir,
        }
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("crl.pem")
    }

    /// Writes the CRL, as it should be done: beside, then renamed.
    fn revoke(&self, serials: &[Vec<u8>]) {
        let now = time::OffsetDateTime::now_utc();
        let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let beside = self.dir.path().join("next.pem");
        std::fs::write(&beside, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        std::fs::rename(beside, self.file()).unwrap();
    }
}

#[test]
fn a_crl_file_cuts_who_it_names_within_a_second_and_survives_mistakes() {
    let ca = Ca::new();
    ca.revoke(&[]);
    let mut mesh = Mesh::start_with(&ca.config);
    let mut orders = mesh.machine("orders");
    orders.configure(&format!("[tunnel]\ncrl_file = {:?}\n", ca.file()));
    orders.join(&mesh.token("shop/orders"));
    orders.start();
    orders.wait_ready();
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web.host.connect(&format!("{vip}:80")).unwrap();
    stream.write_all(b"live").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();

    let hex = serial(&web);
    let digits = (0..hex.len()).step_by(2);
    let number = digits
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    ca.revoke(&[number]);
    let revoked = Instant::now();
    let end = stream.read(&mut [0; 4]);
    let took = revoked.elapsed();
    assert!(end.is_err() || end.is_ok_and(|read| read == 0));
    assert!(took < Duration::from_secs(1), "cut after {took:?}");
    orders.wait_log(&["access", "peer certificate revoked", "ns/shop/sa/web"]);
    let metrics = orders.get("http://127.0.0.1:15020/metrics");
    for series in [
        "istio_crl_policy_rejections_total{reporter=\"destination\"}",
        "response_flags=\"CERT_REVOKED\"",
    ] {
        assert!(metrics.contains(series), "{series} in {metrics}");
    }

    // A file that is broken later lets nobody in again.
    std::fs::write(ca.file(), "-----BEGIN X509 CRL-----\n").unwrap();
    wait_until(SOON, "the mistake to be shown", || {
        orders.status()["crl"]["problems"][0].is_string() && orders.status()["healthy"] == false
    });
    assert_eq!(orders.status()["crl"]["lists"][0]["revoked"], 1);
    assert!(
        web.host.connect(&format!("{vip}:80")).is_err(),
        "a revoked machine got a new flow"
    );
    web.wait_log(&["access", "refuses this machine's certificate as revoked"]);

    ca.revoke(&[]);
    wait_until(SOON, "the machine to be let in again", || {
        web.host.connect(&format!("{vip}:80")).is_ok()
    });
    assert_eq!(orders.status()["crl"]["problems"], serde_json::json!([]));
}

#[test]
fn a_flow_ends_when_its_peers_address_is_somebody_elses() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let mut stream = web.host.connect(&format!("{vip}:80")).unwrap();
    let exchange = |stream: &mut TcpStream| {
        stream.write_all(b"live")?;
        stream.read_exact(&mut [0; 4])
    };
    exchange(&mut stream).unwrap();

    // Its agent is cut off from the control plane, which takes the record away. That proves nothing.
    orders.host.nft(
        "table inet off { chain i { type filter hook input priority 0; tcp sport 15012 reject with tcp reset; }; \
         chain o { type filter hook output priority 0; tcp dport 15012 drop; }; }",
    );
    let known = || {
        let dump = web.curl(&[
            "-f",
            "--unix-socket",
            &web.dir.join("run/admin.sock").display().to_string(),
            "http://agent/config_dump",
        ]);
        let dump: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
        dump["workloads"].to_string().contains(&orders.ip4)
    };
    wait_until(SOON, "the record to be gone", || !known());
    exchange(&mut stream).unwrap();

    mesh.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: heir, namespace: other, labels: {{networking.istio.io/tunnel: http}}}}\nspec: {{address: {}, serviceAccount: guest}}\n",
        orders.ip4
    ));
    let applied = Instant::now();
    assert!(stream.read(&mut [0; 4]).map_or(true, |read| read == 0));
    assert!(
        applied.elapsed() < Duration::from_secs(1),
        "cut after {:?}",
        applied.elapsed()
    );
    web.wait_log(&["access", "is spiffe://mesh.internal/ns/other/sa/guest now"]);
}

#[test]
fn the_root_is_rotated_twice_under_load() {
    let mut mesh = Mesh::start();
    let orders = mesh.member("orders", "shop/orders");
    let web = mesh.member("web", "shop/web");
    let _echo = orders.host.echo_server("0.0.0.0:8080");
    let vip = web.host.resolve("orders.shop.mesh.internal");
    let connect = || {
        web.host
            .enter(|| TcpStream::connect_timeout(&format!("{vip}:80").parse().unwrap(), SOON).unwrap())
    };
    let mut long = connect();
    long.set_read_timeout(Some(SOON)).unwrap();
    let exchange = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    };
    exchange(&mut long);
    for round in 0..2 {
        let before = signing(&mesh);
        mesh.ctl(&["ca", "rotate"]);
        wait_until(SOON, "every agent to acknowledge, and the new key to sign", || {
            exchange(&mut long);
            exchange(&mut connect());
            signing(&mesh) != before
        });
        // Both renew, because the anchor that signed their certificates is on its way out; then it is dropped.
        let serials = (serial(&web), serial(&orders));
        wait_until(SOON, "the old anchor to be dropped", || {
            exchange(&mut long);
            exchange(&mut connect());
            mesh.ctl_json(&["ca", "status"])["phase"] == "steady"
        });
        assert!(
            serial(&web) != serials.0 || serial(&orders) != serials.1,
            "round {round}: nobody renewed"
        );
        exchange(&mut long);
    }
    let newcomer = mesh.member("late", "shop/web");
    assert_eq!(newcomer.status()["state"], "member");
}

fn signing(mesh: &Mesh) -> String {
    let status = mesh.ctl_json(&["ca", "status"]);
    let anchors = status["anchors"].as_array().unwrap();
    anchors.iter().find(|anchor| anchor["signing"] == true).unwrap()["fingerprint"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn serial(machine: &crate::fixture::Machine) -> String {
    machine.status()["certificate"]["serial"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
