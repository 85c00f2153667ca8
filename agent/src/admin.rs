//! The local interfaces: the admin socket (reading for its group, changing for root), and the loopback ports for metrics and
//! readiness.

pub mod dump;
pub mod status;
mod why;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Config;
use crate::ready::Ready;
use crate::trace::Level;
use status::View;

/// What the daemon is asked to do.
#[derive(Debug)]
pub enum Command {
    Join {
        token: String,
        address: Option<std::net::IpAddr>,
        reply: oneshot::Sender<Result<String, String>>,
    },
    Leave {
        reply: oneshot::Sender<Result<String, String>>,
    },
    Drain {
        undo: bool,
        reply: oneshot::Sender<Result<String, String>>,
    },
}

/// What the interfaces read, and whom they tell.
#[derive(Clone, Debug)]
pub struct Admin {
    pub config: Arc<Config>,
    pub view: watch::Receiver<Arc<View>>,
    pub commands: mpsc::Sender<Command>,
    pub ready: Ready,
    pub metrics: PrometheusHandle,
    pub level: Level,
}

type Reply = Response<Full<Bytes>>;

/// Binds the socket `admin.sock`.
pub fn bind(config: &Config) -> anyhow::Result<UnixListener> {
    let directory = &config.paths.run;
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(SOCKET);
    // Left by an agent that was killed; one that lives holds the TUN device, which is noticed later.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
    if let Err(error) = give_to_group(&path, &config.admin.group) {
        tracing::debug!(target: "mesh_agent::admin", %error, group = config.admin.group, "the admin socket stays with this group");
    }
    Ok(listener)
}

fn give_to_group(path: &Path, group: &str) -> anyhow::Result<()> {
    let group = nix::unistd::Group::from_name(group)?.context("there is no such group")?;
    nix::unistd::chown(path, None, Some(group.gid))?;
    Ok(())
}

/// Serves the admin socket. Who may connect is the socket's mode; who may change things is asked of the kernel.
pub async fn serve(admin: Admin, listener: UnixListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let uid = stream.peer_cred().map(|peer| peer.uid()).ok();
        let admin = admin.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let admin = admin.clone();
                async move { anyhow::Ok(admin.answer(uid, request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

/// Commands that a probe runs have the agent's user, and shall not see what the agent knows.
fn is_ours(uid: Option<u32>) -> bool {
    let own = nix::unistd::Uid::effective();
    !own.is_root() && uid == Some(own.as_raw())
}

impl Admin {
    async fn answer(&self, uid: Option<u32>, request: http::Request<Incoming>) -> Reply {
        if is_ours(uid) {
            return text(
                StatusCode::FORBIDDEN,
                "the agent's own user is not an operator; ask as root, or as a member of the group",
            );
        }
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "/status") => json(&status::render(&self.view.borrow())),
            (&Method::GET, "/config_dump") => self.dump(),
            (&Method::GET, "/why") => self.why(&query),
            (&Method::GET, "/flows") => json(&status::flows(&self.view.borrow())),
            (&Method::POST, "/join" | "/leave" | "/drain" | "/logging") if uid != Some(0) => {
                text(StatusCode::FORBIDDEN, "only root may do this; try sudo")
            }
            (&Method::POST, "/join") => self.join(&query, request).await,
            (&Method::POST, "/leave") => self.command(|reply| Command::Leave { reply }).await,
            (&Method::POST, "/drain") => {
                let undo = query == "undo=true";
                self.command(|reply| Command::Drain { undo, reply }).await
            }
            (&Method::POST, "/logging") => {
                let filter = query.strip_prefix("level=").unwrap_or_default();
                match self.level.set(filter) {
                    Ok(()) => text(StatusCode::OK, "changed"),
                    Err(error) => text(StatusCode::BAD_REQUEST, &format!("{error:#}")),
                }
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "GET /status /flows /config_dump /why?source=&destination=; POST /join /leave /drain?undo=true /logging?level=",
            ),
        }
    }

    fn dump(&self) -> Reply {
        let view = self.view.borrow().clone();
        match dump::render(&view) {
            Ok(bytes) => json_bytes(bytes),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                &format!("the dump cannot be written: {error}"),
            ),
        }
    }

    fn why(&self, query: &str) -> Reply {
        let view = self.view.borrow().clone();
        let View::Member(member) = &*view else {
            return text(StatusCode::CONFLICT, "this machine has not joined");
        };
        match why::render(member, query) {
            Ok(answer) => json(&answer),
            Err(wrong) => text(StatusCode::BAD_REQUEST, &wrong),
        }
    }

    async fn join(&self, query: &str, request: http::Request<Incoming>) -> Reply {
        let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
            return text(StatusCode::BAD_REQUEST, "the token is too long");
        };
        let token = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        let address = query.strip_prefix("address=").map(str::parse).transpose();
        let Ok(address) = address else {
            return text(StatusCode::BAD_REQUEST, "the address is not an IP address");
        };
        self.command(|reply| Command::Join { token, address, reply }).await
    }

    async fn command(&self, make: impl FnOnce(oneshot::Sender<Result<String, String>>) -> Command) -> Reply {
        let (reply, answer) = oneshot::channel();
        let stopping = || text(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping");
        if self.commands.send(make(reply)).await.is_err() {
            return stopping();
        }
        match answer.await {
            Ok(Ok(done)) => text(StatusCode::OK, &done),
            Ok(Err(why)) => text(StatusCode::CONFLICT, &why),
            Err(_) => stopping(),
        }
    }
}

/// Serves `/metrics`, `/stats/prometheus` and `/healthz/ready` on their loopback ports.
pub async fn serve_ports(admin: &Admin) -> anyhow::Result<()> {
    for address in [admin.config.admin.metrics, admin.config.admin.ready] {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("binding {address} (section admin); is another agent running?"))?;
        let admin = admin.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                };
                let admin = admin.clone();
                let answer = service_fn(move |request: http::Request<Incoming>| {
                    let reply = admin.public(request.uri().path());
                    async move { anyhow::Ok(reply) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
    }
    Ok(())
}

impl Admin {
    fn public(&self, path: &str) -> Reply {
        match path {
            "/metrics" | "/stats/prometheus" => text(StatusCode::OK, &self.metrics.render()),
            "/healthz/ready" => match self.ready.waiting_for().as_slice() {
                [] => text(StatusCode::OK, "ready"),
                waiting => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    &format!("waiting for: {}", waiting.join(", ")),
                ),
            },
            _ => text(StatusCode::NOT_FOUND, "not found"),
        }
    }
}

fn json(value: &serde_json::Value) -> Reply {
    json_bytes(format!("{value}\n").into_bytes())
}

fn json_bytes(bytes: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(bytes)));
    let json = http::HeaderValue::from_static("application/json");
    reply.headers_mut().insert(http::header::CONTENT_TYPE, json);
    reply
}

fn text(status: StatusCode, body: &str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::copy_from_slice(format!("{body}\n").as_bytes())));
    *reply.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    reply
}

/// Name of the socket in the run directory.
pub const SOCKET: &str = "admin.sock";
/// A token, and white space around it.
const MAX_BODY: usize = mesh_core::token::MAX_LENGTH + 1024;
