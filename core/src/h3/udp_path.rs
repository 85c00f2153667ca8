//! The path of a CONNECT-UDP by the default template (RFC 9298 3): `/.well-known/masque/udp/{target_host}/{target_port}/`.

/// The path for an authority, as a plain CONNECT has it (`10.0.0.1:53`, `[fd00::1]:53`, `host:53`); `None` of what is no
/// authority.
pub fn encode(authority: &str) -> Option<String> {
    let (host, port) = authority.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let valid = host
        .bytes()
        .all(|byte| is_plain(byte) || (bare.is_some() && byte == b':'));
    if host.is_empty() || !valid || !is_port(port) {
        return None;
    }
    // Colons are the only ones of these that stand for something else in a path segment of the template.
    Some(format!("{PREFIX}{}/{port}/", host.replace(':', "%3A")))
}

/// The authority of a path, which is still to be checked as one: IPv6 in brackets. `None` of what does not follow the template,
/// or has an escape other than the one for a colon.
pub fn decode(path: &str) -> Option<String> {
    let rest = path.strip_prefix(PREFIX)?;
    let (host, port) = rest.strip_suffix('/')?.split_once('/')?;
    if host.is_empty() || host.len() > MAX_HOST || !is_port(port) {
        return None;
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.bytes().all(is_name) {
        return Some(format!("{host}:{port}"));
    }
    let host = host.replace("%3A", ":").replace("%3a", ":");
    let six: std::net::Ipv6Addr = host.parse().ok()?;
    Some(format!("[{six}]:{port}"))
}

/// 1 to 65535 in its shortest form.
fn is_port(text: &str) -> bool {
    let shortest = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    shortest && text.parse::<u16>().is_ok()
}

const PREFIX: &str = "/.well-known/masque/udp/";
/// Longest host name (RFC 1035 3.1).
const MAX_HOST: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_template_is_followed_both_ways() {
        for (authority, path) in [
            ("192.0.2.6:443", "/.well-known/masque/udp/192.0.2.6/443/"),
            ("[2001:db8::42]:443", "/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/"),
            ("dns.shop.example:53", "/.well-known/masque/udp/dns.shop.example/53/"),
        ] {
            assert_eq!(encode(authority).as_deref(), Some(path));
            assert_eq!(decode(path).as_deref(), Some(authority));
        }
        let lower = "/.well-known/masque/udp/2001%3adb8%3a%3a42/443/";
        assert_eq!(decode(lower).as_deref(), Some("[2001:db8::42]:443"));
    }

    #[test]
    fn anything_else_is_no_target() {
        for path in [
            "",
            "/",
            "/.well-known/masque/udp/192.0.2.6/443",
            "/.well-known/masque/udp/192.0.2.6/443/?x",
            "/.well-known/masque/udp/192.0.2.6/443/x/",
            "/.well-known/masque/udp//443/",
            "/.well-known/masque/udp/192.0.2.6//",
            "/.well-known/masque/udp/192.0.2.6/0/",
            "/.well-known/masque/udp/192.0.2.6/+53/",
            "/.well-known/masque/udp/192.0.2.6/053/",
            "/.well-known/masque/udp/192.0.2.6/65536/",
            "/.well-known/masque/udp/2001:db8::42:1:1:1:1:1:1/443/",
            "/.well-known/masque/udp/fe80%3A%3A1%25eth0/443/",
            "/.well-known/masque/udp/a%2Fb/443/",
            "/.well-known/masque/udp/%2A/%2A/",
            "/.well-known/masque/tcp/192.0.2.6/443/",
        ] {
            assert_eq!(decode(path), None, "{path}");
        }
        for authority in ["", "host", ":53", "host:", "ho/st:53", "a:b:53", "host:0", "[]:53"] {
            assert_eq!(encode(authority), None, "{authority}");
        }
    }

    proptest! {
        #[test]
        fn addresses_read_back(address: std::net::SocketAddr) {
            prop_assume!(address.port() != 0);
            let authority = std::net::SocketAddr::new(address.ip(), address.port()).to_string();
            prop_assert_eq!(encode(&authority).and_then(|path| decode(&path)), Some(authority));
        }

        #[test]
        fn what_is_read_can_be_written(path in "/.well-known/masque/udp/[a-f0-9.:%3A]{0,20}/[0-9]{0,5}/") {
            if let Some(authority) = decode(&path) {
                prop_assert!(encode(&authority).is_some(), "{}", authority);
            }
        }
    }
}
