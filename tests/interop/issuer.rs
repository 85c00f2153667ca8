//! An issuer of service account tokens, as Kubernetes is one: an ECDSA key, its key set in a file, and JWTs signed by it.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

const NAME: &str = "https://issuer.example";

pub struct Issuer {
    pair: EcdsaKeyPair,
    file: tempfile::NamedTempFile,
}

impl Issuer {
    pub fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        // An uncompressed point: 4, x, y.
        let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
        let keys = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": "one", "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] });
        std::fs::write(file.path(), keys.to_string()).unwrap();
        Self { pair, file }
    }

    /// Lines of control.toml.
    pub fn config(&self) -> String {
        format!("[[jwt]]\nissuer = {NAME:?}\njwks_file = {:?}\n", self.file.path())
    }

    /// A token of `NAMESPACE:ACCOUNT`.
    pub fn token(&self, subject: &str) -> String {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let header = json!({ "alg": "ES256", "kid": "one" });
        let claims = json!({
            "iss": NAME, "aud": ["istio-ca"], "sub": format!("system:serviceaccount:{subject}"), "iat": now, "exp": now + 3600,
        });
        let signed = [header, claims]
            .map(|part| URL_SAFE_NO_PAD.encode(part.to_string()))
            .join(".");
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
