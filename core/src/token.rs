//! The bootstrap token: one pasteable, checksummed string.
//!
//! `mesh1.` and then, in base64url without padding, the protobuf message followed by its CRC-32 (big-endian). The checksum
//! finds typing errors only; what a token is worth is decided by the control plane.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
pub use mesh_proto::mesh::BootstrapToken;
use prost::Message as _;

/// What every token of this version begins with.
const PREFIX: &str = "mesh1.";
/// No token that we print comes near this, not even one that holds a bundle of istioctl; a longer paste is not worth decoding.
pub const MAX_LENGTH: usize = 64 * 1024;

/// Why a string is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "not a mesh-agent token: it does not begin with \"mesh1.\"; paste the whole line that `meshctl token create` (or `token pack`) printed"
    )]
    Foreign,
    #[error("the token is mistyped or cut off (its checksum does not fit); paste the whole line again")]
    Checksum,
    #[error("the token is of a kind that this version does not know: {0}")]
    Unsupported(&'static str),
}

/// Prints a token.
pub fn encode(token: &BootstrapToken) -> String {
    let mut bytes = token.encode_to_vec();
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Reads a token; surrounding white space is ignored.
pub fn decode(text: &str) -> Result<BootstrapToken, TokenError> {
    let text = text.trim();
    let Some(body) = text.strip_prefix(PREFIX) else {
        return Err(TokenError::Foreign);
    };
    if body.len() > MAX_LENGTH {
        return Err(TokenError::Checksum);
    }
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Checksum)?;
    let (message, checksum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Checksum)?;
    if crc32fast::hash(message) != u32::from_be_bytes(*checksum) {
        return Err(TokenError::Checksum);
    }
    let token = BootstrapToken::decode(message).map_err(|_| TokenError::Unsupported("its content is not readable"))?;
    check(&token)?;
    Ok(token)
}

/// A token that names no server, no key or no secret cannot be used safely, however well it is typed.
fn check(token: &BootstrapToken) -> Result<(), TokenError> {
    if token.addresses.is_empty() {
        return Err(TokenError::Unsupported("it names no control plane"));
    }
    if token.istio.is_some() {
        // What is in the bundle has checks, and errors, of its own: `istio::check`.
        return Ok(());
    }
    if token.ca_pins.is_empty() || token.ca_pins.iter().any(|pin| pin.len() != 32) {
        return Err(TokenError::Unsupported("it pins no CA key by SHA-256"));
    }
    if token.token_id.is_empty() || token.secret.is_empty() {
        return Err(TokenError::Unsupported("it has no id or no secret"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use mesh_proto::mesh::IstioBundle;
    use proptest::prelude::*;

    fn any_token() -> impl Strategy<Value = BootstrapToken> {
        (
            prop::collection::vec("[a-z0-9.:]{1,30}", 1..4),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 32), 1..3),
            "[a-z0-9]{1,16}",
            prop::collection::vec(any::<u8>(), 1..40),
            "[a-z.]{0,20}",
        )
            .prop_map(|(addresses, ca_pins, token_id, secret, trust_domain)| BootstrapToken {
                addresses,
                ca_pins,
                token_id,
                secret,
                trust_domain,
                istio: None,
            })
    }

    proptest! {
        #[test]
        fn reads_what_it_prints(token in any_token()) {
            let text = encode(&token);
            prop_assert_eq!(decode(&format!(" {text}\n")).unwrap(), token);
        }

        #[test]
        fn finds_each_mistyped_character(token in any_token(), at in any::<prop::sample::Index>(), wrong in "[ -~]") {
            let text = encode(&token);
            let at = at.index(text.len());
            prop_assume!(text[at..=at] != wrong);
            let mistyped = format!("{}{wrong}{}", &text[..at], &text[at + 1..]);
            prop_assert!(decode(&mistyped).is_err());
        }

        #[test]
        fn finds_a_cut(token in any_token(), at in any::<prop::sample::Index>()) {
            let text = encode(&token);
            prop_assert!(decode(&text[..at.index(text.len())]).is_err());
        }

        #[test]
        fn never_panics(text in any::<String>(), tail in "[A-Za-z0-9_-]{0,80}") {
            let _ = decode(&text);
            let _ = decode(&format!("mesh1.{tail}"));
        }
    }

    #[test]
    fn tells_the_errors_apart() {
        assert_eq!(decode("hello"), Err(TokenError::Foreign));
        assert_eq!(decode(""), Err(TokenError::Foreign));
        assert_eq!(decode("mesh1."), Err(TokenError::Checksum));
        assert_eq!(
            decode(&format!("mesh1.{}", "A".repeat(MAX_LENGTH + 1))),
            Err(TokenError::Checksum)
        );
        let empty = encode(&BootstrapToken::default());
        assert!(matches!(decode(&empty), Err(TokenError::Unsupported(_))));
        let nowhere = encode(&BootstrapToken {
            istio: Some(IstioBundle::default()),
            ..BootstrapToken::default()
        });
        assert!(matches!(decode(&nowhere), Err(TokenError::Unsupported(_))));
    }
}
