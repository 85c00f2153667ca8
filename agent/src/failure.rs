//! Why a flow ended, as one type: its label in logs and metrics, and what the application sees. The texts begin as ztunnel's
//! do, so that what was written to find one in a log finds the other.

use std::sync::Arc;

use mesh_core::connect::ResponseHead;
use mesh_core::engine::Refusal;
use mesh_core::inbound::TargetRefusal;
use mesh_core::outbound::RouteFailure;
use mesh_core::policy::Denial;

use crate::flows::Facts;
use crate::metrics;
use crate::tls::{Revoked, RevokedBy};

/// Why a flow ended otherwise than by both sides finishing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The world has no way to the destination.
    #[error("{0}")]
    Route(#[from] RouteFailure),
    /// The application of the far side refused the connection.
    #[error("connection refused: nothing listens there, or a firewall resets ({0})")]
    Refused(String),
    /// The far side could not be reached in time.
    #[error("connection timed out: {0}")]
    Timeout(String),
    /// The tunnel port of the far side did not answer in time.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {0}")]
    TunnelTimeout(String),
    /// No path to the far side.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The TLS handshake failed, or the certificate did not show the identity that was demanded.
    #[error("tls error: {0}")]
    Tls(String),
    /// The far side does not speak HTTP as a tunnel must.
    #[error("http handshake failed: the peer broke the protocol: {0}")]
    Protocol(String),
    /// The far side answered the CONNECT with this status; the second part names the policy, if it said so.
    #[error("http status: {}{}", status_text(*.status), .reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Status { status: u16, reason: Option<String> },
    /// Our own policies deny it.
    #[error("connection closed due to policy rejection: {}", denial_text(.0))]
    Denied(Denial),
    /// Our policies changed under a live flow.
    #[error("connection closed due to policy change: {}", denial_text(.0))]
    PolicyChange(Denial),
    /// The peer's certificate was revoked.
    #[error("connection closed: peer certificate revoked")]
    Revoked,
    /// The peer says that ours was.
    #[error("connection closed: the peer refuses this machine's certificate as revoked; join again with a new token")]
    RevokedHere,
    /// The world gives the peer's address to another identity by now.
    #[error("connection closed: {peer} is {now} now and not {then} any more")]
    Replaced {
        peer: std::net::SocketAddr,
        now: String,
        then: String,
    },
    /// The far side cut a live flow because its policy changed (the fixed code); the policy's name where our world tells it.
    #[error("connection closed by the far side due to policy change: {}", .0.as_deref().unwrap_or("unknown policy"))]
    PolicyChangeRemote(Option<String>),
    /// The CONNECT target is not ours.
    #[error("{}{}", target_family(.0), .0)]
    Target(#[from] TargetRefusal),
    /// UDP to a peer that takes none in a tunnel, which the settings forbid.
    #[error("{0} takes no UDP in a tunnel, and udp.plain = \"refuse\" keeps it from going there in plain")]
    Unencrypted(String),
    /// The application on this machine reset the flow.
    #[error("reset by the application")]
    ApplicationReset,
    /// The application gave up before the far side answered.
    #[error("the application gave up before the far side answered")]
    Abandoned,
    /// The far side reset the stream.
    #[error("reset by the peer (code {0})")]
    PeerReset(u64),
    /// The tunnel under the flow broke.
    #[error("tunnel lost: {0}")]
    TunnelLost(String),
    /// A limit of ours was reached.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// We have no certificate (yet).
    #[error("identity error: there is no certificate yet")]
    NoCertificate,
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
    /// An IO error of this machine.
    #[error("{0}")]
    Io(Arc<std::io::Error>),
}

fn status_text(status: u16) -> String {
    // With its name, as in "503 Service Unavailable".
    http::StatusCode::from_u16(status).map_or_else(|_| status.to_string(), |status| status.to_string())
}

fn target_family(refusal: &TargetRefusal) -> &'static str {
    match refusal {
        TargetRefusal::NotOurAddress(_) => "ip mismatch: ",
        TargetRefusal::Unparsable(_) => "invalid CONNECT address: ",
        _ => "",
    }
}

/// The policies that a denial names, comma separated, as `namespace/name`; what is missing is said in words.
pub fn denial_policies(denial: &Denial) -> String {
    match denial {
        Denial::Explicit(key) => key.to_string(),
        Denial::NotAllowed(keys) => keys.join(","),
        Denial::MissingPolicy(key) => format!("{key} (not received)"),
        Denial::NotSynced => "policies not received yet".into(),
    }
}

/// A denial in words, with the policies that it names.
pub fn denial_text(denial: &Denial) -> String {
    match denial {
        Denial::Explicit(key) => format!("explicitly denied by: {key}"),
        Denial::NotAllowed(_) => format!("allow policies exist, but none allowed: {}", denial_policies(denial)),
        Denial::MissingPolicy(_) | Denial::NotSynced => denial_policies(denial),
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused(error.to_string()),
            Kind::TimedOut => Self::Timeout(error.to_string()),
            Kind::HostUnreachable | Kind::NetworkUnreachable => Self::Unreachable(error.to_string()),
            Kind::ConnectionReset | Kind::BrokenPipe | Kind::ConnectionAborted => Self::ApplicationReset,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl Failure {
    /// What a peer's answer other than 200 means.
    pub fn from_status(head: ResponseHead) -> Self {
        Self::Status {
            status: head.status,
            reason: head.policy.or(head.reason),
        }
    }

    /// Istio's `response_flags`, as ztunnel gives them; `-` is an end that is nobody's failure.
    pub fn response_flags(&self) -> &'static str {
        match self {
            Self::Denied(_) | Self::PolicyChange(_) | Self::PolicyChangeRemote(_) => "DENY",
            Self::Status { status: 401, .. } => "DENY",
            Self::Tls(_) => "TLS_FAILURE",
            Self::Protocol(_) => "H2_HANDSHAKE_FAILURE",
            Self::TunnelTimeout(_) => "NETWORK_POLICY",
            Self::Revoked | Self::RevokedHere => "CERT_REVOKED",
            Self::NoCertificate => "IDENTITY_ERROR",
            Self::Stopping => "-",
            _ => "CONNECT",
        }
    }

    /// What the application that opened the flow sees before its SYN was answered.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Denied(_) | Self::Unencrypted(_) | Self::Status { status: 401, .. } => Refusal::Denied,
            Self::Refused(_) => Refusal::Refused,
            Self::Status {
                status: 503,
                reason: Some(reason),
            } if reason == "refused" => Refusal::Refused,
            Self::Route(RouteFailure::NoSuchPort(..)) => Refusal::Refused,
            _ => Refusal::Unreachable,
        }
    }

    /// A live flow ended so. When its tunnel was lost because the peer was revoked it is named so, whichever part noticed
    /// first; and counted, when a CRL said it.
    #[must_use]
    pub fn or_revoked(self, revoked: &Revoked, facts: &Facts) -> Self {
        let (Self::TunnelLost(_) | Self::Revoked) = self else {
            return self;
        };
        match facts.peer_certificate.as_ref().and_then(|peer| revoked.by(peer)) {
            None => return self,
            Some(RevokedBy::Crl) => metrics::crl_rejected(facts.direction),
            Some(RevokedBy::ControlPlane) => {}
        }
        Self::Revoked
    }

    /// The policy that caused it, where it is known.
    pub fn policy(&self) -> Option<String> {
        match self {
            Self::Denied(denial) | Self::PolicyChange(denial) => Some(denial_policies(denial)),
            Self::PolicyChangeRemote(policy) => policy.clone(),
            Self::Status { status: 401, reason } => reason.clone(),
            _ => None,
        }
    }

    /// Whether it was over before there was anybody to be asked.
    pub fn is_early(&self) -> bool {
        matches!(self, Self::Route(_) | Self::Target(_) | Self::NoCertificate)
    }

    /// Whether another endpoint may be tried while nothing was sent.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::Timeout(_)
                | Self::TunnelTimeout(_)
                | Self::Unreachable(_)
                | Self::Tls(_)
                | Self::Protocol(_)
                | Self::Revoked
                | Self::TunnelLost(_)
                | Self::Unencrypted(_)
                | Self::PeerReset(_)
                | Self::Status { status: 503, .. }
        )
    }
}
