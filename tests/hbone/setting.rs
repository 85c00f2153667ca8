//! A member that serves, a caller's certificate, and what the control plane says of them.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use mesh_agent::certs::Pem;
use mesh_agent::tunnel::Tunnels;
use mesh_core::policy::{Action, Match, Policy, Scope, StringMatch};
use mesh_core::transport::Preference;
use mesh_core::world::{Delta, Service, Workload, convert};
use mesh_proto::istio::workload as proto;

use crate::bare::{self, Answer};
use crate::door::Door;
use crate::frames::Wire;
use crate::mesh::{Ca, Member, over, workload};

/// The member `orders`, before which a test stands as `web`.
pub struct Setting {
    pub orders: Member,
    pub peer: SocketAddr,
    pub tunnels: Tunnels,
    pub web: Pem,
    pub ca: Ca,
}

impl Setting {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With another configuration of tunnels.
    pub fn with(configure: impl FnOnce(&mut mesh_agent::config::Tunnel)) -> Self {
        let ca = Ca::new();
        let mut orders = Member::new("orders", &ca.member("orders"));
        let shared = Arc::get_mut(&mut orders.shared).unwrap();
        configure(&mut Arc::get_mut(&mut shared.config).unwrap().tunnel);
        let (peer, tunnels) = orders.serve_drainable();
        Self {
            web: ca.member("web"),
            orders,
            peer,
            tunnels,
            ca,
        }
    }

    pub async fn client(&self) -> SendRequest<Bytes> {
        bare::client(self.peer, &self.web).await
    }

    pub async fn wire(&self) -> Wire<bare::ClientTls> {
        bare::wire(self.peer, &self.web).await
    }

    /// A CONNECT on a connection of its own.
    pub async fn ask(&self, authority: &str, headers: &[(&str, &str)]) -> Answer {
        let answer = bare::ask(&self.client().await, bare::request(authority, headers)).await;
        answer.unwrap_or_else(|error| panic!("{authority}: {error}"))
    }

    /// Another record of `orders`.
    pub fn record(&self, change: impl FnOnce(&mut Workload)) {
        let mut record = workload("orders");
        change(&mut record);
        self.orders.change(Delta {
            workloads: vec![record],
            ..Delta::default()
        });
    }
}

/// A service of the namespace `shop` with one port.
pub fn service(host: &str, vip: [u8; 4], ports: (u16, u16)) -> Service {
    let service = proto::Service {
        name: host.into(),
        namespace: "shop".into(),
        hostname: host.into(),
        addresses: vec![proto::NetworkAddress {
            address: vip.into(),
            ..proto::NetworkAddress::default()
        }],
        ports: vec![proto::Port {
            service_port: ports.0.into(),
            target_port: ports.1.into(),
            ..proto::Port::default()
        }],
        ..proto::Service::default()
    };
    convert::service(service, &mut convert::Names::default()).unwrap()
}

/// A policy of the namespace that denies `web`.
pub fn deny_web() -> Policy {
    Policy {
        key: "shop/no-web".into(),
        namespace: "shop".into(),
        name: "no-web".into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: vec![vec![vec![Match {
            principals: vec![StringMatch::Exact("mesh.internal/ns/shop/sa/web".into())],
            ..Match::default()
        }]]],
    }
}

/// The access log of this thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Everything from here to the end of the guard.
    pub fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The first line with all of these, once it is there.
    pub async fn line(&self, parts: &[&str]) -> String {
        let found = tokio::time::timeout(Duration::from_secs(10), self.find(parts)).await;
        found.unwrap_or_else(|_| panic!("no line with {parts:?} in:\n{}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    async fn find(&self, parts: &[&str]) -> String {
        loop {
            let text = self.text();
            let found = text.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            if let Some(line) = found {
                return line.to_owned();
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The member `web`, which dials, and a door at which the test stands as `orders`.
pub struct Dialling {
    pub door: Door,
    pub web: Member,
    pub tunnels: Tunnels,
    pub ca: Ca,
}

/// Runs a test with one, over TCP alone.
pub fn dialling(test: impl AsyncFnOnce(Dialling)) {
    over(Preference::Tcp, async || {
        let ca = Ca::new();
        let web = Member::new("web", &ca.member("web"));
        test(Dialling {
            door: Door::new(&ca.member("orders")).await,
            tunnels: web.dialer(),
            web,
            ca,
        })
        .await;
    });
}
