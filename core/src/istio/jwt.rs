//! What a JWT (RFC 7519) says of itself. The signature is not verified: this only tells a stale token from a good one before
//! it is sent; whether it is genuine is for istiod to say.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::rotation::UnixTime;

/// The claims that matter here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Claims {
    #[serde(default, rename = "iss")]
    pub issuer: String,
    #[serde(default, rename = "sub")]
    pub subject: String,
    #[serde(default, rename = "aud")]
    pub audience: Audience,
    /// Seconds since the epoch; a token without one never expires.
    #[serde(rename = "exp")]
    pub expires: Option<UnixTime>,
}

/// One, or many.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audience {
    /// All of them.
    pub fn list(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Reads the claims of a token, which is three base64url parts with dots between.
pub fn claims(token: &str) -> Result<Claims, String> {
    let parts: Vec<_> = token.split('.').collect();
    let [_, payload, _] = parts.as_slice() else {
        return Err("it is not a JWT (three parts with dots between): the file is cut off or another one".into());
    };
    let bytes = URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .map_err(|error| format!("its payload is not base64url ({error}): the file is damaged"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("its payload is not readable: {error}"))
}
