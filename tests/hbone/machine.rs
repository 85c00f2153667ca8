//! Two machines: one captures and dials, and the test stands at the HBONE port of the other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::Arc;

use mesh_agent::capture::{Capture, Captured};
use mesh_agent::config::Config;
use mesh_agent::kernel::Kernel;
use mesh_agent::outbound;
use mesh_agent::tun::Tun;
use mesh_core::transport::Preference;
use mesh_core::world::{Delta, Gateway, GatewayDestination, NetworkAddress, Service, Workload};
use mesh_lab::{Host, Lan};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

use crate::door::{Asked, Door, Served};
use crate::mesh::{Ca, Member, over, workload};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
pub const VIP: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 1);
const HBONE: u16 = 15008;
/// That of both machines.
pub const NETWORK: &str = "east";

/// Runs `test` on the capturing machine.
pub fn capturing(test: impl AsyncFnOnce(Machine) + Send) {
    let lan = Lan::new();
    let (client, server) = (lan.host("client"), lan.host("server"));
    client.wait_up("eth0");
    server.wait_up("eth0");
    client.enter(|| over(Preference::Tcp, async || test(Machine::new(&server)).await));
}

/// The member `web` on the capturing machine.
pub struct Machine {
    pub ca: Ca,
    pub web: Member,
    /// At the other machine's HBONE port, for both versions of IP.
    listener: TcpListener,
}

impl Machine {
    fn new(server: &Host) -> Self {
        let ca = Ca::new();
        let mut web = Member::new("web", &ca.member("web"));
        let shared = Arc::get_mut(&mut web.shared).unwrap();
        let config = Arc::get_mut(&mut shared.config).unwrap();
        config.capture = Config::default().capture;
        config.outbound.connect_timeout_ms = Config::default().outbound.connect_timeout_ms;
        shared.membership.network = NETWORK.into();
        let listener = server.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, HBONE)).unwrap());
        listener.set_nonblocking(true).unwrap();
        Self { ca, web, listener }
    }

    /// Gives up after so many milliseconds. To be called before [`Self::capture`].
    pub fn give_up_after(&mut self, milliseconds: u64) {
        let shared = Arc::get_mut(&mut self.web.shared).unwrap();
        let config = Arc::get_mut(&mut shared.config).unwrap();
        config.outbound.connect_timeout_ms = milliseconds;
    }

    /// Captures what goes to these, for as long as the runtime lives. The kernel's part goes with the machine.
    pub fn capture(&self, captured: &[IpAddr]) {
        let shared = self.web.shared.clone();
        let tun = Tun::open(&shared.config.capture).unwrap();
        let mut kernel = Kernel::install(&shared.config, &[]).unwrap();
        let prefixes: BTreeSet<_> = captured.iter().map(|one| ipnet::IpNet::from(*one)).collect();
        kernel.update_prefixes(&prefixes).unwrap();
        std::mem::forget(kernel);
        let (capture, _) = Capture::new(tun, &shared.config.capture, [9; 32]).unwrap();
        let tunnels = self.web.dialer();
        tokio::task::spawn_local(capture.run(move |captured| {
            if let Captured::Tcp(flow) = captured {
                tokio::task::spawn_local(outbound::serve(shared.clone(), tunnels.clone(), flow, 7));
            }
        }));
    }

    /// The other machine's HBONE port, with the certificate of this member.
    pub fn door(&self, name: &str) -> Door {
        let listener = self.listener.try_clone().unwrap();
        Door::at(
            tokio::net::TcpListener::from_std(listener).unwrap(),
            &self.ca.member(name),
            &["h2"],
        )
    }

    /// What the control plane says besides.
    pub fn know(&self, workloads: Vec<Workload>, services: Vec<Service>) {
        self.web.change(Delta {
            workloads,
            services,
            ..Delta::default()
        });
    }
}

/// The record of a member that is no machine of ours, so that HTTP/3 is not expected of it.
pub fn at(name: &str, address: Ipv4Addr) -> Workload {
    Workload {
        addresses: vec![address.into()],
        network: NETWORK.into(),
        hbone3: false,
        ..workload(name)
    }
}

/// A waypoint or gateway at the other machine.
pub fn gateway() -> Arc<Gateway> {
    Arc::new(Gateway {
        destination: GatewayDestination::Address(NetworkAddress {
            network: NETWORK.into(),
            address: SERVER.into(),
        }),
        port: HBONE,
    })
}

/// The application connects to `to`; `look` sees what the server is asked before it answers 200.
pub async fn call(door: &Door, to: IpAddr, port: u16, look: impl FnOnce(&Asked)) -> Call {
    let server = async {
        let mut served = door.http2(&h2::server::Builder::new()).await;
        let asked = served.next().await.unwrap();
        look(&asked);
        (asked.into_pipe(), served)
    };
    let (application, (pipe, served)) = tokio::join!(TcpStream::connect((to, port)), server);
    Call::new(application.unwrap(), pipe, served)
}

/// A connection with both of its ends.
pub struct Call {
    pub application: TcpStream,
    pipe: DuplexStream,
    _served: Served,
}

impl Call {
    pub fn new(application: TcpStream, pipe: DuplexStream, served: Served) -> Self {
        Self {
            application,
            pipe,
            _served: served,
        }
    }

    pub async fn works(&mut self) {
        self.application.write_all(b"forth").await.unwrap();
        let mut got = [0; 5];
        self.pipe.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"forth");
        self.pipe.write_all(b"back!").await.unwrap();
        self.application.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"back!");
    }
}
