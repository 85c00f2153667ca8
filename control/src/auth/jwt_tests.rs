#![allow(clippy::unwrap_used)]
use super::*;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use jsonwebtoken::EncodingKey;
use serde_json::json;

const ISSUER: &str = "https://issuer.example";

fn ec() -> EncodingKey {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
}

fn rsa() -> EncodingKey {
    let pair = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
    // The library takes PKCS#1: what is inside PKCS#8's octet string.
    let (_, info) = x509_parser::der_parser::der::parse_der(der.as_ref()).unwrap();
    EncodingKey::from_rsa_der(info.as_sequence().unwrap()[2].as_slice().unwrap())
}

fn ed() -> EncodingKey {
    let pair = Ed25519KeyPair::generate().unwrap();
    EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref())
}

fn jwk(key: &EncodingKey, algorithm: Algorithm, kid: &str) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
    jwk.common.key_id = Some(kid.to_owned());
    jwk
}

fn now() -> i64 {
    crate::store::now()
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "system:serviceaccount:shop:web", "aud": ["other", "istio-ca"],
        "iat": now() - 10, "nbf": now() - 10, "exp": now() + 600,
        "kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web"}},
    })
}

fn sign(key: &EncodingKey, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let mut header = Header::new(algorithm);
    header.kid = kid.map(str::to_owned);
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn check(token: &str, keys: &[Jwk]) -> Result<Subject, JwtError> {
    let (header, issuer) = issuer_of(token)?;
    assert_eq!(issuer, ISSUER);
    let keys = JwkSet { keys: keys.to_vec() };
    verify(token, &header, ISSUER, &["istio-ca".to_owned()], &keys)
}

#[test]
fn every_algorithm_that_we_take_verifies_with_and_without_a_key_name() {
    let (rsa, other) = (rsa(), ec());
    for (key, algorithm) in [
        (rsa.clone(), Algorithm::RS256),
        (rsa, Algorithm::PS256),
        (ec(), Algorithm::ES256),
        (ed(), Algorithm::EdDSA),
    ] {
        let keys = [jwk(&other, Algorithm::ES256, "other"), jwk(&key, algorithm, "one")];
        for kid in [Some("one"), None] {
            let subject = check(&sign(&key, algorithm, kid, &claims()), &keys).unwrap();
            assert_eq!(
                (subject.namespace.as_str(), subject.service_account.as_str()),
                ("shop", "web")
            );
            assert!((now() - 15..=now()).contains(&subject.issued_at));
        }
    }
}

#[test]
fn secrets_and_unsigned_tokens_are_never_taken() {
    use base64::Engine;
    let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let none = format!("{}.{}.", encode("{\"alg\":\"none\"}"), encode(&claims().to_string()));
    assert!(
        matches!(issuer_of(&none), Err(JwtError::Algorithm(_))),
        "{:?}",
        issuer_of(&none)
    );
    let shared = sign(&EncodingKey::from_secret(b"secret"), Algorithm::HS256, None, &claims());
    assert_eq!(issuer_of(&shared).unwrap_err(), JwtError::Algorithm("HS256".into()));
    for text in ["", "a.b", "a.b.c", "mesh"] {
        assert!(matches!(issuer_of(text), Err(JwtError::Form(_))), "{text}");
    }
}

#[test]
fn a_key_of_another_family_is_no_candidate() {
    // The classic confusion: a token that names an RSA key, signed by other means.
    let (real, attacker) = (rsa(), ec());
    let keys = [jwk(&real, Algorithm::RS256, "one")];
    let forged = sign(&attacker, Algorithm::ES256, Some("one"), &claims());
    assert_eq!(check(&forged, &keys).unwrap_err(), JwtError::UnknownKey("one".into()));
    let forged = sign(&rsa(), Algorithm::RS256, Some("one"), &claims());
    assert_eq!(check(&forged, &keys).unwrap_err(), JwtError::Signature("one".into()));
    let unknown = sign(&real, Algorithm::RS256, Some("two"), &claims());
    assert_eq!(check(&unknown, &keys).unwrap_err(), JwtError::UnknownKey("two".into()));
}

#[test]
fn claims_are_checked_and_the_reason_is_named() {
    let key = ec();
    let keys = [jwk(&key, Algorithm::ES256, "one")];
    let with = |field: &str, value: Value| {
        let mut claims = claims();
        claims[field] = value;
        check(&sign(&key, Algorithm::ES256, None, &claims), &keys)
    };
    assert!(with("exp", json!(now() - 20)).is_ok(), "clocks may differ a little");
    assert_eq!(with("exp", json!(now() - 60)).unwrap_err(), JwtError::Expired);
    assert!(with("nbf", json!(now() + 20)).is_ok(), "clocks may differ a little");
    assert_eq!(with("nbf", json!(now() + 60)).unwrap_err(), JwtError::Early);
    let other = with("aud", json!("kubernetes")).unwrap_err().to_string();
    assert!(other.contains("kubernetes") && other.contains("istio-ca"), "{other}");
    assert!(
        with("aud", json!("istio-ca")).is_ok(),
        "one audience need not be a list"
    );
    for sub in [
        "web",
        "system:serviceaccount:shop",
        "system:serviceaccount::web",
        "system:serviceaccount:shop:",
        "system:serviceaccount:sh/op:web",
        "system:serviceaccount:shop:we:b",
        "system:node:a",
    ] {
        assert!(matches!(with("sub", json!(sub)), Err(JwtError::Subject(_))), "{sub}");
    }
    for missing in ["exp", "aud"] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(missing);
        let result = check(&sign(&key, Algorithm::ES256, None, &claims), &keys);
        assert!(result.is_err(), "without {missing}");
    }
}
