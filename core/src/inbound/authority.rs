//! What a peer may ask for: `10.0.0.1:80`, `[fd00::1]:80` or `host:80`.

use std::net::SocketAddr;

use super::TargetRefusal;

/// A CONNECT's `:authority`, with a port that is not 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    /// In its shortest form.
    Address(SocketAddr),
    Host(String, u16),
}

/// How much of an authority is repeated in an error.
const SHOWN: usize = 128;
/// Longest host name (RFC 1035 section 3.1, without the last dot).
const MAX_HOST: usize = 253;

impl Authority {
    pub(super) fn parse(text: &str) -> Result<Self, TargetRefusal> {
        Self::read(text).ok_or_else(|| TargetRefusal::Unparsable(text.chars().take(SHOWN).collect()))
    }

    fn read(text: &str) -> Option<Self> {
        // A zone ("fe80::1%eth0") would be lost silently below, and names another machine's interface anyway.
        if text.contains('%') {
            return None;
        }
        if let Ok(parsed) = text.parse::<SocketAddr>() {
            let target = SocketAddr::new(parsed.ip().to_canonical(), parsed.port());
            return (target.port() != 0).then_some(Self::Address(target));
        }
        let (host, port) = text.rsplit_once(':')?;
        // As `u16::from_str` takes "+80", too.
        let port: u16 = port
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| port.parse().ok())??;
        let host = host.strip_suffix('.').unwrap_or(host);
        (port != 0 && is_host(host)).then(|| Self::Host(host.to_owned(), port))
    }
}

/// Labels of letters, digits, `-` and `_`, the last of which is not a number: that would be an address misspelt.
fn is_host(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(fits);
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= MAX_HOST && host.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}
