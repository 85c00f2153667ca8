//! An independent HTTP/3 implementation at the other end: aioquic, from the Python registry.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::mesh::{Ca, Member, dial, echo, echo_server, run};

#[test]
fn a_foreign_client_with_a_mesh_certificate_gets_through() {
    let python = python();
    run(async || {
        let ca = Ca::new();
        let orders = Member::new("orders", &ca.member("orders"));
        let application = echo_server().await;
        let peer = orders.serve();
        let files = Files::of(&ca, "web");
        let mut client = tokio::process::Command::new(&python);
        client
            .arg(script("client.py"))
            .args([peer.port().to_string(), application.clone()])
            .args(files.arguments());
        let output = client.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("status 200") && said.contains("echoed"), "{said}");
        assert!(said.contains("refused 400"), "{said}");
    });
}

#[test]
fn a_strict_foreign_server_finds_nothing_wrong_with_ours() {
    let python = python();
    run(async || {
        let ca = Ca::new();
        let files = Files::of(&ca, "orders");
        let mut server = tokio::process::Command::new(&python);
        server
            .arg(script("server.py"))
            .args(files.arguments())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut server = server.spawn().unwrap();
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let port: u16 = lines.next_line().await.unwrap().expect("no port").parse().unwrap();
        let web = Member::new("web", &ca.member("web"));
        let quic = web.dialer();
        let peer = ([127, 0, 0, 1], port).into();
        let mut stream = dial(&quic, peer, &["orders"], "10.0.0.7:8080").await.unwrap();
        echo(&mut stream, b"through a foreign server").await.unwrap();
        let headers = lines.next_line().await.unwrap().expect("no headers");
        assert!(
            headers.contains(":method=CONNECT") && headers.contains(":authority=10.0.0.7:8080"),
            "{headers}"
        );
        assert!(!headers.contains(":scheme") && !headers.contains(":path"), "{headers}");
    });
}

#[test]
fn a_foreign_client_gets_udp_through() {
    let python = python();
    run(async || {
        let ca = Ca::new();
        let orders = Member::new("orders", &ca.member("orders"));
        let application = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (closed, port) = (closed_port().await, application.local_addr().unwrap().port());
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = application.recv_from(&mut buffer).await {
                let _ = application.send_to(&buffer[..length], from).await;
            }
        });
        let peer = orders.serve();
        let files = Files::of(&ca, "web");
        let mut client = tokio::process::Command::new(&python);
        client
            .arg(script("udp_client.py"))
            .args([peer.port(), port, closed].map(|port| port.to_string()))
            .args(files.arguments());
        let output = client.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        for expected in [
            "status 200 b'?1'",
            "a datagram came back",
            "a capsule came back",
            "refused 10.9.9.9 503",
            "refused 169.254.169.254 400",
            "refused 127.0.0.1 400",
            "refused x%2F 400",
            // CONNECT_ERROR: nobody listens there.
            "reset 0x10f",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    });
}

/// A UDP port that was free a moment ago.
async fn closed_port() -> u16 {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.local_addr().unwrap().port()
}

/// Key, certificate and CA of a member, as files.
struct Files(tempfile::TempDir);

impl Files {
    fn of(ca: &Ca, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pem = ca.member(name);
        for (file, text) in [("key.pem", &pem.key), ("cert.pem", &pem.chain), ("ca.pem", &ca.pem)] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        Self(dir)
    }

    fn arguments(&self) -> [PathBuf; 3] {
        ["key.pem", "cert.pem", "ca.pem"].map(|file| self.0.path().join(file))
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tunnel").join(name)
}

/// A Python that has aioquic: made once, below the directory of this test's binary.
fn python() -> PathBuf {
    static MADE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let make = || {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("http3-venv");
        let python = venv.join("bin/python");
        let has = |python: &Path| {
            let import = Command::new(python)
                .args(["-c", "import aioquic"])
                .stderr(Stdio::null())
                .status();
            import.is_ok_and(|status| status.success())
        };
        if !has(&python) {
            let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status();
            assert!(
                made.is_ok_and(|status| status.success()),
                "python3 -m venv failed: install python3-venv"
            );
            let installed = Command::new(&python)
                .args(["-m", "pip", "install", "-q", "aioquic==1.2.0"])
                .status();
            assert!(
                installed.is_ok_and(|status| status.success()),
                "pip install aioquic failed"
            );
        }
        python
    };
    MADE.get_or_init(make).clone()
}
