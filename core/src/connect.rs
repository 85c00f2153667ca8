//! A CONNECT as HBONE has it, whether it travels over HTTP/2 or HTTP/3: what the request says, and what the answer; and the
//! CONNECT-UDP of HTTP/3 with the same headers.

/// What a CONNECT request says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHead {
    /// `:authority`: where the application listens, as `ip:port` or `host:port`.
    pub authority: String,
    pub baggage: Option<String>,
    pub forwarded: Option<String>,
    pub traceparent: Option<String>,
    /// The caller's own network; only in the inner CONNECT of a way through a gateway.
    pub forwarded_network: Option<String>,
    /// Of a CONNECT-UDP (RFC 9298): whom it asks, as its `:authority` names it. `authority` is then where the application takes
    /// datagrams, and stands in the path.
    pub udp_by: Option<String>,
}

/// A request that was well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Connect(ConnectHead),
    /// Any other method, or an extended CONNECT for another protocol: answered with 400.
    Other,
}

/// What the answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    /// On 401: the policies that denied.
    pub policy: Option<String>,
    /// On 503: why the application was not reached.
    pub reason: Option<String>,
    pub baggage: Option<String>,
    /// Where the same is served over HTTP/3 (RFC 7838).
    pub alt_svc: Option<String>,
    /// `?1` on the answer to a CONNECT-UDP: what follows are capsules (RFC 9297 3.4).
    pub capsule_protocol: Option<String>,
}

impl ConnectHead {
    /// The headers that are there, without the pseudo headers.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        present([
            (BAGGAGE, &self.baggage),
            (FORWARDED, &self.forwarded),
            (TRACEPARENT, &self.traceparent),
            (FORWARDED_NETWORK, &self.forwarded_network),
        ])
    }

    /// From an authority and a look at the headers.
    pub fn from_headers(authority: String, header: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            authority,
            baggage: header(BAGGAGE),
            forwarded: header(FORWARDED),
            traceparent: header(TRACEPARENT),
            forwarded_network: header(FORWARDED_NETWORK),
            udp_by: None,
        }
    }
}

impl ResponseHead {
    /// The headers that are there, without the status.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        present([
            (POLICY, &self.policy),
            (REASON, &self.reason),
            (BAGGAGE, &self.baggage),
            (ALT_SVC, &self.alt_svc),
            (CAPSULE_PROTOCOL, &self.capsule_protocol),
        ])
    }

    /// From a status and a look at the headers.
    pub fn from_headers(status: u16, header: impl Fn(&str) -> Option<String>) -> Self {
        Self {
            status,
            policy: header(POLICY),
            reason: header(REASON),
            baggage: header(BAGGAGE),
            alt_svc: header(ALT_SVC),
            capsule_protocol: header(CAPSULE_PROTOCOL),
        }
    }

    /// Whether the answer says that HTTP/3 is spoken on this UDP port.
    pub fn offers_http3(&self, port: u16) -> bool {
        let offered = |entry: &str| {
            let (protocol, rest) = entry.trim().split_once('=')?;
            let authority = rest.split(';').next()?.trim().trim_matches('"');
            // Another host than the one that was asked is not believed.
            let offered = authority.strip_prefix(':')?.parse::<u16>().ok()?;
            Some(protocol == "h3" && offered == port)
        };
        let entries = self.alt_svc.as_deref().unwrap_or_default().split(',');
        entries.filter_map(offered).any(|offered| offered)
    }
}

fn present<'a, const N: usize>(fields: [(&'a str, &'a Option<String>); N]) -> impl Iterator<Item = (&'a str, &'a str)> {
    fields
        .into_iter()
        .filter_map(|(name, value)| value.as_deref().map(|value| (name, value)))
}

/// Names the policies that denied a CONNECT.
pub const POLICY: &str = "x-mesh-policy";
/// Names why an application was not reached.
pub const REASON: &str = "x-mesh-reason";
/// RFC 9297 3.4: the DATA of both directions are capsules.
pub(crate) const CAPSULE_PROTOCOL: &str = "capsule-protocol";
const BAGGAGE: &str = "baggage";
const FORWARDED: &str = "forwarded";
const TRACEPARENT: &str = "traceparent";
const FORWARDED_NETWORK: &str = "x-forwarded-network";
const ALT_SVC: &str = "alt-svc";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_of_http3_is_believed_for_the_same_host_and_port() {
        for (alt_svc, expected) in [
            ("h3=\":15008\"", true),
            ("h2=\":15008\", h3=\":15008\"; ma=3600", true),
            ("h3=\":443\"", false),
            ("h3=\"other.host:15008\"", false),
            ("h3-29=\":15008\"", false),
            ("clear", false),
            ("h3", false),
            ("h3=\":99999\"", false),
            ("", false),
        ] {
            let head = ResponseHead {
                alt_svc: Some(alt_svc.into()),
                ..ResponseHead::default()
            };
            assert_eq!(head.offers_http3(15008), expected, "{alt_svc}");
        }
        assert!(!ResponseHead::default().offers_http3(15008));
    }
}
