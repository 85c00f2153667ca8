//! Members for tests: certificates of one CA, a world that knows them, endpoints on loopback.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mesh_agent::certs::{Credentials, Pem};
use mesh_agent::config::Config;
use mesh_agent::copy::{End, Sink as _, Source as _};
use mesh_agent::crl::Crls;
use mesh_agent::failure::Failure;
use mesh_agent::join::Membership;
use mesh_agent::shared::Shared;
use mesh_agent::tls::Revoked;
use mesh_agent::transports::Transports;
use mesh_agent::tunnel::{ConnectHead, StreamSink, StreamSource, Target, Tunnels, listen};
use mesh_agent::{flows, inbound};
use mesh_core::identity::Identity;
use mesh_core::outbound::Quic;
use mesh_core::transport::Preference;
use mesh_core::world::{Delta, Locality, TunnelProtocol, Workload, World};
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::LocalSet;

/// A certificate authority.
pub struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: rcgen::Issuer::new(params, key),
            pem,
        }
    }

    /// What members know after reading this CA's CRL, which names the holders of these certificates.
    pub fn crls(&self, revoked: &[&Pem]) -> Arc<Crls> {
        let now = OffsetDateTime::now_utc();
        let revoked = revoked.iter().map(|pem| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(&pem.credentials().unwrap().serial),
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
        let list = list.signed_by(&self.issuer).unwrap();
        let anchor = rustls_pki_types::CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap();
        let crls = Crls::default().next(list.der(), &[anchor]);
        assert!(crls.problems.is_empty(), "{:?}", crls.problems);
        Arc::new(crls)
    }

    /// A leaf of this SPIFFE ID, valid from yesterday for `days`, as PEM parts.
    pub fn leaf(&self, uri: &str, days: i64) -> Pem {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(1);
        params.not_after = params.not_before + time::Duration::days(days);
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pem {
            key: key.serialize_pem(),
            chain,
            roots: vec![self.pem.clone()],
        }
    }

    pub fn member(&self, name: &str) -> Pem {
        self.leaf(&format!("spiffe://mesh.internal/ns/shop/sa/{name}"), 30)
    }
}

/// One member: its state, and the handles by which a test changes it.
pub struct Member {
    pub shared: Arc<Shared>,
    pub world: watch::Sender<Arc<World>>,
    pub crls: watch::Sender<Arc<Crls>>,
    pub credentials: watch::Sender<Option<Arc<Credentials>>>,
}

impl Member {
    pub fn new(name: &str, pem: &Pem) -> Self {
        let mut config = Config::default();
        config.tunnel.transport = TRANSPORT.get();
        config.tunnel.listen = "127.0.0.1:0".parse().unwrap();
        config.outbound.connect_timeout_ms = 2_000;
        // Marking a socket needs a capability, which these tests do without.
        config.capture.mark = 0;
        // The members' own address is nobody's here; what is asked for is delivered to loopback.
        config.inbound.loopback_ports = (1024..=u16::MAX).filter(|port| !OWN_PORTS.contains(port)).collect();
        let world = World::default().apply(Delta {
            workloads: vec![workload("web"), workload("orders")],
            addresses_synced: true,
            policies_synced: true,
            ..Delta::default()
        });
        let (world, world_watch) = watch::channel(Arc::new(world));
        let (crls, crls_watch) = watch::channel(Arc::default());
        let (credentials, credentials_watch) = watch::channel(Some(Arc::new(pem.credentials().unwrap())));
        let shared = Shared {
            membership: membership(name),
            revoked: Revoked::new(world_watch.clone(), crls_watch),
            world: world_watch,
            credentials: credentials_watch,
            flows: Arc::<flows::Flows>::default(),
            settled: AtomicBool::new(true),
            transports: Transports::new(config.tunnel.transport),
            config: Arc::new(config),
            ways: mesh_agent::inbound::ways::Ways::default(),
            standing: mesh_agent::health::Standing::default(),
        };
        Self {
            shared: Arc::new(shared),
            world,
            crls,
            credentials,
        }
    }

    /// The next world.
    pub fn change(&self, delta: Delta) {
        let next = self.world.borrow().apply(delta);
        self.world.send_replace(Arc::new(next));
    }

    /// Serves tunnels; where. Must be called on a [`LocalSet`].
    pub fn serve(&self) -> SocketAddr {
        self.serve_drainable().0
    }

    /// The same, with the handle by which it is told to drain.
    pub fn serve_drainable(&self) -> (SocketAddr, Tunnels) {
        let tunnels = Tunnels::bind(self.shared.clone()).unwrap();
        let address = tunnels.local_address();
        let shared = self.shared.clone();
        let handler = move |request| inbound::serve(shared.clone(), None, request);
        tokio::task::spawn_local(listen::run(tunnels.clone(), handler));
        tokio::task::spawn_local(inbound::recheck(self.shared.clone()));
        (address, tunnels)
    }

    pub fn dialer(&self) -> Tunnels {
        Tunnels::bind(self.shared.clone()).unwrap()
    }
}

pub type Stream = End<StreamSource, StreamSink>;

/// Dials `peer`, which must be one of `names`, and asks for `authority`.
pub async fn dial(tunnels: &Tunnels, peer: SocketAddr, names: &[&str], authority: &str) -> Result<Stream, Failure> {
    let identities = names.iter().map(|name| id(name)).collect();
    let target = Target {
        peer,
        identities,
        quic: Quic::Marked,
    };
    let head = ConnectHead {
        authority: authority.into(),
        ..ConnectHead::default()
    };
    let dialled = tokio::time::timeout(Duration::from_secs(10), tunnels.dial(&target, &head)).await;
    dialled.expect("dialling took too long").map(|(stream, _)| stream)
}

pub fn id(name: &str) -> Identity {
    Identity::new("mesh.internal", "shop", name).unwrap()
}

/// Sends `bytes`, and expects them back.
pub async fn echo(stream: &mut Stream, bytes: &'static [u8]) -> Result<(), Failure> {
    stream.sink.send(bytes::Bytes::from_static(bytes)).await?;
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let chunk = stream.source.recv().await?;
        got.extend_from_slice(&chunk.expect("the stream ended early"));
    }
    assert_eq!(got, bytes);
    Ok(())
}

/// The address of all members' records.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// Ports of the agent itself.
pub const OWN_PORTS: [u16; 3] = [15008, 15020, 15021];

/// How a peer asks for an application on this port.
pub fn target(local: SocketAddr) -> String {
    format!("{ADDRESS}:{}", local.port())
}

/// A TCP server that sends back what it gets; how a peer asks for it.
pub async fn echo_server() -> String {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
            });
        }
    });
    target(address)
}

thread_local! {
    /// What new members dial over.
    static TRANSPORT: Cell<Preference> = const { Cell::new(Preference::Quic) };
}

/// Runs a test over HTTP/3 and over HTTP/2: what it says holds for both.
pub fn over_each(test: impl AsyncFn()) {
    for preference in [Preference::Quic, Preference::Tcp] {
        over(preference, &test);
    }
}

/// Runs a test whose members dial in this way.
pub fn over(preference: Preference, test: impl AsyncFnOnce()) {
    TRANSPORT.set(preference);
    run(test);
}

/// Runs a test on one thread, as a shard does.
pub fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test());
}

/// The record of a member.
pub fn workload(name: &str) -> Workload {
    Workload {
        uid: format!("mesh//{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![ADDRESS.into()],
        hostname: "".into(),
        network: "".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        identity: id(name),
        node: "".into(),
        canonical_name: name.into(),
        canonical_revision: "".into(),
        workload_type: 2,
        workload_name: name.into(),
        authorization_policies: Vec::new(),
        healthy: true,
        cluster_id: "mesh".into(),
        host_network: false,
        locality: Locality::default(),
        capacity: 1,
        services: Vec::new(),
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        hbone3: true,
    }
}

fn membership(name: &str) -> Membership {
    Membership {
        agent_id: name.into(),
        trust_domain: "mesh.internal".into(),
        namespace: "shop".into(),
        service_account: name.into(),
        workload_name: name.into(),
        workload_group: name.into(),
        network: String::new(),
        cluster_id: "mesh".into(),
        dns_domain: "mesh.internal".into(),
        address: Ipv4Addr::LOCALHOST.into(),
        control_addresses: Vec::new(),
        ca_pins: Vec::new(),
        control_plane: Default::default(),
    }
}
