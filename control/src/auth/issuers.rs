//! The configured issuers: which of them a JWT is of, whether it is believed, and keeping their keys fresh.

use std::sync::Arc;

use tokio::task::JoinSet;
use tonic::Code;

use super::jwt::{self, JwtError, Subject};
use super::keys::Keys;
use crate::config::{ConfigError, JwtIssuer};
use crate::error::Refusal;

/// All issuers.
#[derive(Default)]
pub struct Issuers {
    all: Vec<Issuer>,
}

struct Issuer {
    name: String,
    audiences: Vec<String>,
    keys: Arc<Keys>,
}

impl Issuers {
    /// Reads keys that are files, and the anchors of URLs; a file that cannot be read is a fault of the configuration.
    pub fn open(settings: &[JwtIssuer]) -> Result<Self, ConfigError> {
        let open = |one: &JwtIssuer| {
            let keys = Keys::open(one).map_err(|e| ConfigError::Value(format!("jwt issuer {:?}: {e}", one.issuer)))?;
            Ok(Issuer {
                name: one.issuer.clone(),
                audiences: one.audiences.clone(),
                keys: Arc::new(keys),
            })
        };
        let all = settings.iter().map(open).collect::<Result<_, ConfigError>>()?;
        Ok(Self { all })
    }

    /// Whom a token names, when its issuer is configured and its signature, audience and times are right.
    pub(super) fn verify(&self, token: &str) -> Result<Subject, Refusal> {
        if self.all.is_empty() {
            let message = "this control plane takes no JWTs: configure their issuer as [[jwt]] in control.toml, or use a token of `meshctl token create`";
            return Err(Refusal::new(Code::Unauthenticated, "jwt-unconfigured", message));
        }
        let (header, name) = jwt::issuer_of(token).map_err(refused)?;
        let Some(issuer) = self.all.iter().find(|i| i.name == name) else {
            let name: String = name.chars().take(200).collect();
            let known: Vec<_> = self.all.iter().map(|i| i.name.as_str()).collect();
            let message = format!(
                "the JWT's issuer {name:?} is not configured here; known are {}",
                known.join(", ")
            );
            return Err(Refusal::new(Code::Unauthenticated, "jwt-issuer", message));
        };
        let keys = issuer.keys.current().map_err(|why| {
            let message = format!("the keys of issuer {name} are not known yet: {why}; try again");
            Refusal::new(Code::Unavailable, "jwt-keys", message)
        })?;
        let verified = jwt::verify(token, &header, &issuer.name, &issuer.audiences, &keys);
        if let Err(JwtError::UnknownKey(_)) = verified {
            // The issuer may have rotated its keys since they were read.
            issuer.keys.ask();
        }
        verified.map_err(refused)
    }

    /// Keeps all keys fresh, for ever.
    pub(crate) async fn follow(&self) {
        let mut tasks: JoinSet<()> = self.all.iter().map(|i| i.keys.clone().follow(i.name.clone())).collect();
        while tasks.join_next().await.is_some() {}
    }
}

fn refused(error: JwtError) -> Refusal {
    let word = match error {
        JwtError::Form(_) => "token-invalid",
        JwtError::Algorithm(_) => "jwt-algorithm",
        JwtError::UnknownKey(_) => "jwt-key",
        JwtError::Signature(_) => "jwt-signature",
        JwtError::Expired => "jwt-expired",
        JwtError::Early => "jwt-early",
        JwtError::Audience { .. } => "jwt-audience",
        JwtError::Subject(_) => "jwt-subject",
        JwtError::Other(_) => "jwt-invalid",
    };
    Refusal::new(Code::Unauthenticated, word, error.to_string())
}
