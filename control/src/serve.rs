//! The daemon: binds, serves, says READY, and ends on SIGTERM or SIGINT.

mod routes;

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_proto::envoy::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_proto::istio::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_proto::mesh::join_service_server::JoinServiceServer;
use mesh_proto::mesh::operator_server::OperatorServer;
use sd_notify::NotifyState;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::auth::Issuers;
use crate::config::Settings;
use crate::control::Control;
use crate::incoming;
use crate::issue::Certificates;
use crate::join::Joins;
use crate::operator::Operators;
use crate::rotation;
use crate::store::Store;
use crate::xds::Ads;

/// Dead connections are noticed within two of these.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// How long open calls may take to end after a stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Longest message that operators may send, in bytes.
const OPERATOR_MESSAGE: usize = 64 << 20;

/// Runs until a signal comes.
pub async fn run(settings: Settings) -> Result<()> {
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(serve(settings, stopped));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended?,
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    stop.send_replace(true);
    match tokio::time::timeout(DRAIN, serving).await {
        Ok(ended) => ended?,
        Err(_) => Ok(()),
    }
}

/// Serves until `stopped` turns true.
pub async fn serve(settings: Settings, stopped: watch::Receiver<bool>) -> Result<()> {
    make_dir(&settings.data_dir, 0o700)?;
    make_dir(&settings.run_dir, 0o755)?;
    let store = Store::open(&settings.data_dir.join("control.db"))
        .with_context(|| format!("cannot open the store in {}", settings.data_dir.display()))?;
    let agents = listen(settings.listen).with_context(|| format!("cannot listen on {}", settings.listen))?;
    let operators =
        listen(settings.operator_listen).with_context(|| format!("cannot listen on {}", settings.operator_listen))?;
    let socket = settings.run_dir.join("control.sock");
    let local = listen_local(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;

    let issuers = Issuers::open(&settings.jwt)?;
    let control = Control::open(settings, store, issuers)?;
    let (agents_at, operators_at) = (agents.local_addr()?, operators.local_addr()?);
    control
        .addresses
        .get_or_init(|| control.settings.advertised(agents_at.port()));
    control
        .operator_addresses
        .get_or_init(|| vec![operators_at.to_string()]);
    write_addresses(&control, agents_at, operators_at)?;

    let tasks = [
        tokio::spawn(control.clone().publish()),
        tokio::spawn(control.clone().sweep_after_start()),
        tokio::spawn(rotation::upkeep(control.clone())),
        tokio::spawn(follow_issuers(control.clone())),
    ];
    let operator = OperatorServer::new(Operators::new(control.clone())).max_decoding_message_size(OPERATOR_MESSAGE);
    let for_agents = server().serve_with_incoming_shutdown(
        agent_routes(&control),
        agent_connections(&control, agents),
        stop(&stopped),
    );
    let over_tls = server().serve_with_incoming_shutdown(
        operator.clone(),
        operator_connections(&control, operators),
        stop(&stopped),
    );
    let over_socket = server().serve_with_incoming_shutdown(operator, incoming::local(local), stop(&stopped));

    tracing::info!(agents = %agents_at, operators = %operators_at, socket = %socket.display(), trust_domain = control.settings.trust_domain, "serving");
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    let ended = tokio::try_join!(for_agents, over_tls, over_socket);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = fs::remove_file(&socket);
    ended.context("a server failed")?;
    Ok(())
}

async fn follow_issuers(control: Arc<Control>) {
    control.issuers.follow().await;
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 << 10)
}

fn agent_routes(control: &Arc<Control>) -> routes::Routes {
    routes::Routes {
        certificates: IstioCertificateServiceServer::new(Certificates::new(control.clone())),
        discovery: AggregatedDiscoveryServiceServer::new(Ads::new(control.clone())).max_decoding_message_size(64 << 20),
        join: JoinServiceServer::new(Joins::new(control.clone())).max_decoding_message_size(256 << 10),
    }
}

fn agent_connections(control: &Arc<Control>, listener: TcpListener) -> incoming::Incoming {
    let (config, admit) = (control.clone(), control.clone());
    incoming::tls(
        listener,
        move || config.agents_tls(),
        move |certificate| admit.admits(certificate),
    )
}

fn operator_connections(control: &Arc<Control>, listener: TcpListener) -> incoming::Incoming {
    let config = control.clone();
    incoming::tls(listener, move || config.operators_tls(), |_| false)
}

async fn stop(stopped: &watch::Receiver<bool>) {
    let _ = stopped.clone().wait_for(|stopped| *stopped).await;
}

/// Binds; `[::]` takes IPv4 too, and becomes `0.0.0.0` where there is no IPv6.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        Err(error) if address.ip() == IpAddr::from([0u16; 8]) && is_without_ipv6(&error) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        bound => bound,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
    )
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn listen_local(path: &Path) -> io::Result<UnixListener> {
    // A socket that a killed process left behind answers nobody.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another mesh-control is serving there",
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// `{run_dir}/addresses.json`: what was bound, for those who asked for port 0.
fn write_addresses(control: &Control, agents: SocketAddr, operators: SocketAddr) -> Result<()> {
    let path = control.settings.run_dir.join("addresses.json");
    let text = serde_json::json!({ "agents": agents, "operators": operators, "advertised": control.addresses.get() });
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text.to_string())
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}
