//! From a bootstrap token to a membership: certificate, trust anchors, addresses, kept in the state directory.

mod control_plane;
mod istiod;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mesh_core::token::{self, BootstrapToken};
use mesh_proto::mesh::join_service_client::JoinServiceClient;
use mesh_proto::mesh::{HostProof, JoinRequest, JoinResponse};
use rcgen::{PublicKeyData as _, SigningKey as _};
use serde::{Deserialize, Serialize};

use crate::certs::{Pem, key_and_request};
use crate::channel::{self, Server, Trust, hex};
use crate::dns::Lookup;
use crate::state::{self, State};
pub use control_plane::{ControlPlane, Istiod};

/// The token that systemd hands us as the credential `token`; the unit's default, `none`, means that there is none.
pub fn credential() -> Option<String> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    let token = std::fs::read_to_string(std::path::Path::new(&directory).join("token")).ok()?;
    let token = token.trim();
    (!token.is_empty() && token != "none").then(|| token.to_owned())
}

/// What this machine is a member of, and as whom. Kept as `membership.json` in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub agent_id: String,
    pub trust_domain: String,
    pub namespace: String,
    pub service_account: String,
    /// Name of our WorkloadEntry.
    pub workload_name: String,
    pub workload_group: String,
    pub network: String,
    pub cluster_id: String,
    pub dns_domain: String,
    pub address: IpAddr,
    /// `host:port` of the control plane.
    pub control_addresses: Vec<String>,
    /// Hex SHA-256 of the SubjectPublicKeyInfo of each accepted CA key.
    pub ca_pins: Vec<String>,
    /// Files of before there was a choice do not say it.
    #[serde(default)]
    pub control_plane: ControlPlane,
}

impl Membership {
    /// The SPIFFE ID as which we joined.
    pub fn spiffe_id(&self) -> String {
        let Self {
            trust_domain,
            namespace,
            service_account,
            ..
        } = self;
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

/// The long-lived key of this machine.
#[derive(Debug)]
pub struct HostKey(rcgen::KeyPair);

impl HostKey {
    /// Possession of the key, bound to one TLS connection.
    pub fn prove(&self, exporter: &[u8; 32]) -> anyhow::Result<HostProof> {
        let signed = [PROOF, exporter].concat();
        Ok(HostProof {
            public_key: self.0.subject_public_key_info(),
            signature: self.0.sign(&signed)?,
        })
    }
}

/// Reads the host key, or makes it.
pub fn host_key(state: &State) -> anyhow::Result<HostKey> {
    if let Some(pem) = state.read(state::HOST_KEY)? {
        let pem = String::from_utf8_lossy(&pem);
        return Ok(HostKey(
            rcgen::KeyPair::from_pem(&pem).context("the host key is damaged; `mesh-agent leave` and join again")?,
        ));
    }
    let key = rcgen::KeyPair::generate()?;
    state.write(state::HOST_KEY, key.serialize_pem().as_bytes())?;
    Ok(HostKey(key))
}

/// Joins with a token. Nothing but the host key is left behind by a failure; a lost reply is asked for again. A member may join
/// again only where istiod is its control plane and its certificate has expired.
pub async fn join(state: &State, text: &str, address: Option<IpAddr>, lookup: &Lookup) -> anyhow::Result<Membership> {
    let token = token::decode(text)?;
    if let Some(member) = state.membership()? {
        istiod::may_rejoin(&member, Pem::load(state)?, &token)?;
    }
    let (membership, pem) = match &token.istio {
        Some(bundle) => persist(async || istiod::join(&token, bundle, address, lookup).await).await?,
        None => join_mesh_control(state, &token, address, lookup).await?,
    };
    pem.store(state)?;
    state.write(state::MEMBERSHIP, &serde_json::to_vec_pretty(&membership)?)?;
    Ok(membership)
}

async fn join_mesh_control(
    state: &State,
    token: &BootstrapToken,
    address: Option<IpAddr>,
    lookup: &Lookup,
) -> anyhow::Result<(Membership, Pem)> {
    let had_host_key = state.read(state::HOST_KEY)?.is_some();
    let host = host_key(state)?;
    let joined = persist(async || try_join(token, &host, address, lookup).await).await;
    if joined.is_err() && !had_host_key {
        state.remove(&[state::HOST_KEY])?;
    }
    joined
}

/// Tries again while that may help.
async fn persist<T>(mut attempt: impl AsyncFnMut() -> Result<T, Refused>) -> anyhow::Result<T> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Refused { error, retry: true }) if attempts < ATTEMPTS => {
                tracing::warn!(target: "mesh_agent::join", error = %format!("{error:#}"), attempt = attempts, "trying again");
                tokio::time::sleep(Duration::from_millis(300 * attempts)).await;
            }
            Err(Refused { error, .. }) => return Err(error),
        }
    }
}

/// Why a join failed, and whether the same call may help.
struct Refused {
    error: anyhow::Error,
    retry: bool,
}

impl<E: Into<anyhow::Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            retry: false,
        }
    }
}

async fn try_join(
    token: &BootstrapToken,
    host: &HostKey,
    address: Option<IpAddr>,
    lookup: &Lookup,
) -> Result<(Membership, Pem), Refused> {
    let pins = token
        .ca_pins
        .iter()
        .filter_map(|pin| pin.as_slice().try_into().ok())
        .collect();
    let server = Server::MeshControl {
        trust_domain: token.trust_domain.clone(),
        trust: Trust::Pins(pins),
    };
    let connection = channel::connect(&token.addresses, &server, None, lookup).await?;
    let proof = host.prove(&connection.exporter()?)?;
    let (key, csr) = key_and_request(None)?;
    let request = JoinRequest {
        token_id: token.token_id.clone(),
        secret: token.secret.clone(),
        host: Some(proof),
        csr,
        address: address.map(|address| address.to_string()).unwrap_or_default(),
        hostname: hostname(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
    };
    let mut client = JoinServiceClient::new(connection.channel().await?);
    let response = match tokio::time::timeout(CALL, client.join(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => {
            let retry = matches!(
                status.code(),
                tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled
            );
            return Err(Refused {
                error: anyhow::anyhow!("the join was refused: {}", status.message()),
                retry,
            });
        }
        Err(_) => {
            return Err(Refused {
                error: anyhow::anyhow!("the control plane did not answer in time"),
                retry: true,
            });
        }
    };
    Ok(accept(token, key, response)?)
}

/// Believes an answer only as far as it fits.
fn accept(token: &BootstrapToken, key: String, response: JoinResponse) -> anyhow::Result<(Membership, Pem)> {
    let pem = Pem::from_response(key, response.cert_chain)?;
    let credentials = pem.credentials().context("the control plane's answer")?;
    let identity = &credentials.identity;
    let named = (
        identity.trust_domain(),
        identity.namespace(),
        identity.service_account(),
    );
    if named
        != (
            &*response.trust_domain,
            &*response.namespace,
            &*response.service_account,
        )
        || response.trust_domain != token.trust_domain
    {
        bail!("the control plane signed for {identity}, which is not what it says that we are");
    }
    let membership = Membership {
        agent_id: response.agent_id,
        trust_domain: response.trust_domain,
        namespace: response.namespace,
        service_account: response.service_account,
        workload_name: response.workload_name,
        workload_group: response.workload_group,
        network: response.network,
        cluster_id: response.cluster_id,
        dns_domain: response.dns_domain,
        address: response
            .address
            .parse()
            .context("the address that the control plane accepted")?,
        control_addresses: if response.control_addresses.is_empty() {
            token.addresses.clone()
        } else {
            response.control_addresses
        },
        ca_pins: token.ca_pins.iter().map(|pin| hex(pin)).collect(),
        control_plane: ControlPlane::MeshControl,
    };
    Ok((membership, pem))
}

/// The machine's name, for people.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

const PROOF: &[u8] = b"mesh-agent-join-v1";
const ATTEMPTS: u64 = 4;
const CALL: Duration = Duration::from_secs(10);
