//! Who may call: the local socket's user by the kernel's word, or the bearer of an operator token.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_proto::mesh::CreateOperatorTokenRequest;
use serde::{Deserialize, Serialize};
use tonic::{Code, Request};

use super::Operators;
use crate::ca::random;
use crate::error::Refusal;
use crate::incoming::Peer;
use crate::resources::check::is_name;
use crate::store::{OperatorToken, now};

/// What every operator token begins with.
pub const OPERATOR_TOKEN_PREFIX: &str = "meshop1.";
const DEFAULT_LIFETIME: u32 = 90 * 86_400;

/// What an operator token carries: the prefix, then base64url of this as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorCredential {
    /// `host:port` of the operator API.
    pub addresses: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of each CA key to accept, base64url.
    pub pins: Vec<String>,
    /// The server must be `spiffe://{this}/ns/mesh-system/sa/mesh-control`.
    pub trust_domain: String,
    /// Bearer secret, base64url.
    pub secret: String,
}

impl OperatorCredential {
    /// The token's text.
    pub fn encode(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{OPERATOR_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads a token's text.
    pub fn decode(text: &str) -> Option<Self> {
        let packed = text.trim().strip_prefix(OPERATOR_TOKEN_PREFIX)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(packed).ok()?).ok()
    }
}

impl Operators {
    /// Lets the call through, or refuses it.
    pub(super) async fn allow<T>(&self, request: &Request<T>) -> Result<(), Refusal> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        if let Some(uid) = peer.uid {
            if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
                return Ok(());
            }
            let message =
                "only root and mesh-control's own user may use the local socket; use sudo, or an operator token";
            return Err(Refusal::new(Code::PermissionDenied, "not-operator", message));
        }
        let unauthenticated = || {
            let message = "operator calls need an operator token (`meshctl operator create NAME`), or the local socket as root; a workload certificate does not count";
            Refusal::new(Code::Unauthenticated, "not-operator", message)
        };
        let header = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        let secret = header
            .and_then(|v| v.strip_prefix("Bearer "))
            .ok_or_else(unauthenticated)?;
        let secret = URL_SAFE_NO_PAD
            .decode(secret.as_bytes())
            .map_err(|_| unauthenticated())?;
        let hash = digest(&SHA256, &secret).as_ref().to_vec();
        let found = self
            .control
            .store
            .run(move |tx| OperatorToken::authenticate(tx, &hash, now()))
            .await?;
        let name = found.ok_or_else(unauthenticated)?;
        tracing::debug!(operator = name, "operator call");
        Ok(())
    }

    /// Makes an operator token; of the same name, it replaces the one before.
    pub(super) async fn new_operator_token(&self, request: CreateOperatorTokenRequest) -> Result<String, Refusal> {
        if !is_name(&request.name) {
            let message = format!(
                "{:?} is not a name: use lower case letters, digits, '-' and '.'",
                request.name
            );
            return Err(Refusal::new(Code::InvalidArgument, "invalid", message));
        }
        let secret: [u8; 32] = random();
        let lifetime = if request.lifetime_seconds == 0 {
            DEFAULT_LIFETIME
        } else {
            request.lifetime_seconds
        };
        let row = OperatorToken {
            name: request.name,
            secret_sha256: digest(&SHA256, &secret).as_ref().to_vec(),
            created_at: now(),
            expires_at: now() + i64::from(lifetime),
        };
        self.control.store.run(move |tx| row.put(tx)).await?;
        let authority = self.control.authority();
        Ok(OperatorCredential {
            addresses: self.control.operator_addresses.get().cloned().unwrap_or_default(),
            pins: authority.pins().iter().map(|pin| URL_SAFE_NO_PAD.encode(pin)).collect(),
            trust_domain: authority.trust_domain.clone(),
            secret: URL_SAFE_NO_PAD.encode(secret),
        }
        .encode())
    }
}
