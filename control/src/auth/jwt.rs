//! JWTs of service accounts, as Kubernetes issues them: signature, issuer, audience and times, and who they name.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::Value;

/// How far clocks may differ, in seconds.
const LEEWAY: u64 = 30;
/// Never an algorithm whose key would be a secret that we share, nor none at all.
const ALGORITHMS: [Algorithm; 4] = [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA];
/// Claim `sub` of a service account begins so, and goes on with `NAMESPACE:ACCOUNT`.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whom a verified token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) issuer: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    /// Seconds since 1970; 0 when the token does not say.
    pub(super) issued_at: i64,
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwtError {
    #[error("the bearer token is neither a join token of this mesh nor a JWT: {0}")]
    Form(String),
    #[error("the JWT's algorithm is {0}; only RS256, PS256, ES256 and EdDSA are taken")]
    Algorithm(String),
    #[error("the JWT is signed by key {0:?}, which the issuer's key set does not have")]
    UnknownKey(String),
    #[error("the JWT's signature is not of the issuer's key {0:?}")]
    Signature(String),
    #[error("the JWT has expired; its holder needs a fresh one")]
    Expired,
    #[error("the JWT is not valid yet; compare the clocks of its issuer and of the control plane")]
    Early,
    #[error("the JWT is for audience {found}, but one of {wanted} is needed: ask its issuer for that audience")]
    Audience { found: String, wanted: String },
    #[error("the JWT's `sub` is {0:?}; only service accounts are taken: system:serviceaccount:NAMESPACE:ACCOUNT")]
    Subject(String),
    #[error("the JWT cannot be used: {0}")]
    Other(String),
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Value,
    #[serde(default)]
    iat: Option<f64>,
}

/// What a token says of itself, before anything of it is believed: its header, and its issuer.
pub(super) fn issuer_of(token: &str) -> Result<(Header, String), JwtError> {
    let form = |e: jsonwebtoken::errors::Error| match e.kind() {
        ErrorKind::Json(error) if error.to_string().contains("unknown variant") => {
            JwtError::Algorithm("of another kind".to_owned())
        }
        _ => JwtError::Form(e.to_string()),
    };
    let data = jsonwebtoken::dangerous::insecure_decode::<Claims>(token).map_err(form)?;
    if !ALGORITHMS.contains(&data.header.alg) {
        return Err(JwtError::Algorithm(format!("{:?}", data.header.alg)));
    }
    Ok((data.header, data.claims.iss))
}

/// Checks a token of `issuer` against its keys.
pub(super) fn verify(
    token: &str,
    header: &Header,
    issuer: &str,
    audiences: &[String],
    keys: &JwkSet,
) -> Result<Subject, JwtError> {
    let name = header.kid.clone().unwrap_or_default();
    let candidates = candidates(header, keys);
    if candidates.is_empty() {
        return Err(JwtError::UnknownKey(name));
    }
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[issuer]);
    validation.set_audience(audiences);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let mut failure = JwtError::Signature(name.clone());
    for key in candidates {
        match jsonwebtoken::decode::<Claims>(token, &key, &validation) {
            Ok(data) => return subject(data.claims),
            Err(error) => failure = refusal(token, &name, audiences, &error),
        }
        if !matches!(failure, JwtError::Signature(_)) {
            break;
        }
    }
    Err(failure)
}

/// The keys that may have signed: the one that the header names, or without a name all that fit the algorithm.
fn candidates(header: &Header, keys: &JwkSet) -> Vec<DecodingKey> {
    let fits = |key: &&Jwk| {
        let named = header.kid.is_none() || key.common.key_id == header.kid;
        let signs = !matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption));
        named && signs && family(key) == Some(family_of(header.alg))
    };
    let fitting = keys.keys.iter().filter(fits);
    fitting.filter_map(|key| DecodingKey::from_jwk(key).ok()).collect()
}

fn family(key: &Jwk) -> Option<AlgorithmFamily> {
    match key.algorithm {
        AlgorithmParameters::RSA(_) => Some(AlgorithmFamily::Rsa),
        AlgorithmParameters::EllipticCurve(_) => Some(AlgorithmFamily::Ec),
        AlgorithmParameters::OctetKeyPair(_) => Some(AlgorithmFamily::Ed),
        _ => None,
    }
}

fn family_of(algorithm: Algorithm) -> AlgorithmFamily {
    match algorithm {
        Algorithm::ES256 => AlgorithmFamily::Ec,
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        _ => AlgorithmFamily::Rsa,
    }
}

fn refusal(token: &str, key: &str, audiences: &[String], error: &jsonwebtoken::errors::Error) -> JwtError {
    match error.kind() {
        ErrorKind::InvalidSignature => JwtError::Signature(key.to_owned()),
        ErrorKind::ExpiredSignature => JwtError::Expired,
        ErrorKind::ImmatureSignature => JwtError::Early,
        ErrorKind::InvalidAudience => {
            let claims = jsonwebtoken::dangerous::insecure_decode::<Claims>(token).ok();
            let found = claims.map_or_else(String::new, |data| data.claims.aud.to_string());
            JwtError::Audience {
                found: found.chars().take(200).collect(),
                wanted: audiences.join(", "),
            }
        }
        _ => JwtError::Other(error.to_string()),
    }
}

fn subject(claims: Claims) -> Result<Subject, JwtError> {
    let fits = |part: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        !part.is_empty() && part.len() <= 253 && part.bytes().all(plain)
    };
    let parts = claims.sub.strip_prefix(SERVICE_ACCOUNT).and_then(|s| s.split_once(':'));
    let Some((namespace, account)) = parts.filter(|(namespace, account)| fits(namespace) && fits(account)) else {
        return Err(JwtError::Subject(claims.sub.chars().take(200).collect()));
    };
    #[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
    let issued_at = claims.iat.unwrap_or_default() as i64;
    Ok(Subject {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        issuer: claims.iss,
        issued_at,
    })
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
