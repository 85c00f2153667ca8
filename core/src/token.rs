//! The bootstrap token: one pasteable, checksummed string, `mesh1.` and base64url of the message and its CRC-32.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
pub use mesh_proto::mesh::BootstrapToken;
use prost::Message;

/// Why a string is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "not a mesh-agent token: it does not begin with \"mesh1.\"; paste the whole line that `meshctl token create` printed"
    )]
    Foreign,
    #[error("the token is mistyped or cut off (its checksum does not fit); paste the whole line again")]
    Checksum,
    #[error("the token cannot be used: {0}")]
    Unsupported(&'static str),
}

/// Prints a token.
pub fn encode(token: &BootstrapToken) -> String {
    let mut bytes = token.encode_to_vec();
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Reads a token; surrounding white space is ignored.
pub fn decode(text: &str) -> Result<BootstrapToken, TokenError> {
    let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Foreign)?;
    if body.len() > MAX_LENGTH {
        return Err(TokenError::Unsupported("it is too long"));
    }
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Checksum)?;
    let (message, sum) = bytes.split_last_chunk::<4>().ok_or(TokenError::Checksum)?;
    if crc32fast::hash(message) != u32::from_be_bytes(*sum) {
        return Err(TokenError::Checksum);
    }
    let token = BootstrapToken::decode(message).map_err(|_| TokenError::Unsupported("its content is not readable"))?;
    if token.addresses.is_empty() {
        return Err(TokenError::Unsupported("it names no control plane"));
    }
    if token.ca_pins.is_empty() || token.ca_pins.iter().any(|pin| pin.len() != 32) {
        return Err(TokenError::Unsupported("it has no valid CA pin"));
    }
    if token.token_id.is_empty() || token.secret.is_empty() || token.trust_domain.is_empty() {
        return Err(TokenError::Unsupported("it is incomplete"));
    }
    Ok(token)
}

const PREFIX: &str = "mesh1.";
const MAX_LENGTH: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> BootstrapToken {
        BootstrapToken {
            addresses: vec!["10.0.0.1:15012".into(), "[fd00::1]:15012".into()],
            ca_pins: vec![vec![7; 32]],
            token_id: "ab12".into(),
            secret: vec![9; 32],
            trust_domain: "mesh.internal".into(),
        }
    }

    #[test]
    fn reads_what_it_prints() {
        let text = encode(&token());
        assert_eq!(decode(&format!("  {text}\n")), Ok(token()));
    }

    #[test]
    fn each_mistake_is_told_apart() {
        assert_eq!(decode("eyJhbGciOi"), Err(TokenError::Foreign));
        let text = encode(&token());
        assert_eq!(decode(&text[..text.len() - 3]), Err(TokenError::Checksum));
        let empty = BootstrapToken {
            ca_pins: Vec::new(),
            ..token()
        };
        assert!(matches!(decode(&encode(&empty)), Err(TokenError::Unsupported(_))));
    }

    proptest! {
        #[test]
        fn every_mistyped_character_is_noticed(at in 0usize..150, to in "[A-Za-z0-9_-]") {
            let text = encode(&token());
            let at = 6 + at % (text.len() - 6);
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            // The last character's spare bits do not count.
            if changed != text && at + 1 < text.len() {
                prop_assert_eq!(decode(&changed), Err(TokenError::Checksum));
            }
        }

        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            let _ = decode(&text);
            let _ = decode(&format!("mesh1.{text}"));
        }
    }
}
