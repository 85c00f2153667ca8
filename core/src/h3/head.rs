//! The heads of a CONNECT (RFC 9114 4.4): the request names a target and carries the HBONE headers, the response a status.

use super::H3Error;
use super::qpack::{self, Field};

/// What a CONNECT request says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectHead {
    /// `ip:port` of the application on the far side.
    pub authority: String,
    pub baggage: Option<String>,
    pub forwarded: Option<String>,
    pub traceparent: Option<String>,
}

/// A request that was well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Connect(ConnectHead),
    /// Any other method, or an extended CONNECT: answered with 400.
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
}

/// Encodes a CONNECT: `:method` and `:authority`, and neither `:scheme` nor `:path`.
pub fn encode_request(head: &ConnectHead) -> Vec<u8> {
    let pseudo = [(":method", "CONNECT"), (":authority", head.authority.as_str())];
    let optional = [
        ("baggage", &head.baggage),
        ("forwarded", &head.forwarded),
        ("traceparent", &head.traceparent),
    ];
    qpack::encode(pseudo.into_iter().chain(present(&optional)))
}

/// Encodes a response.
pub fn encode_response(head: &ResponseHead) -> Vec<u8> {
    let status = head.status.to_string();
    let optional = [
        (POLICY, &head.policy),
        (REASON, &head.reason),
        ("baggage", &head.baggage),
    ];
    qpack::encode(std::iter::once((":status", status.as_str())).chain(present(&optional)))
}

fn present<'a>(fields: &'a [(&'a str, &'a Option<String>)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    fields
        .iter()
        .filter_map(|(name, value)| value.as_deref().map(|value| (*name, value)))
}

/// Decodes a request.
pub fn decode_request(section: &[u8]) -> Result<Request, H3Error> {
    let fields = checked(section)?;
    let pseudo = |name: &str| {
        fields
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.value.as_str())
    };
    let known = [":method", ":authority", ":scheme", ":path", ":protocol"];
    if fields
        .iter()
        .any(|field| field.name.starts_with(':') && !known.contains(&field.name.as_str()))
    {
        return Err(H3Error::Message);
    }
    match (pseudo(":method").ok_or(H3Error::Message)?, pseudo(":protocol")) {
        ("CONNECT", None) => {}
        _ => return Ok(Request::Other),
    }
    // RFC 9114 4.4: a CONNECT that has a scheme or a path is malformed.
    if pseudo(":scheme").is_some() || pseudo(":path").is_some() {
        return Err(H3Error::Message);
    }
    let authority = pseudo(":authority")
        .filter(|authority| !authority.is_empty())
        .ok_or(H3Error::Message)?;
    Ok(Request::Connect(ConnectHead {
        authority: authority.to_owned(),
        baggage: regular(&fields, "baggage"),
        forwarded: regular(&fields, "forwarded"),
        traceparent: regular(&fields, "traceparent"),
    }))
}

/// Decodes a response.
pub fn decode_response(section: &[u8]) -> Result<ResponseHead, H3Error> {
    let fields = checked(section)?;
    let mut pseudo = fields.iter().filter(|field| field.name.starts_with(':'));
    let (Some(status), None) = (pseudo.next(), pseudo.next()) else {
        return Err(H3Error::Message);
    };
    let number = status
        .value
        .parse()
        .ok()
        .filter(|number| (100..=999).contains(number) && status.value.len() == 3);
    let (":status", Some(status)) = (status.name.as_str(), number) else {
        return Err(H3Error::Message);
    };
    Ok(ResponseHead {
        status,
        policy: regular(&fields, POLICY),
        reason: regular(&fields, REASON),
        baggage: regular(&fields, "baggage"),
    })
}

/// Rules for any message (RFC 9114 4.2, 4.3): lower-case names, pseudo headers first and once, no connection headers.
fn checked(section: &[u8]) -> Result<Vec<Field>, H3Error> {
    let fields = qpack::decode(section)?;
    let mut regular_seen = false;
    for (at, field) in fields.iter().enumerate() {
        let is_pseudo = field.name.starts_with(':');
        let token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let valid_name = !field.name.is_empty() && field.name.bytes().skip(usize::from(is_pseudo)).all(token);
        let valid_value = field
            .value
            .bytes()
            .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
        let repeated = is_pseudo && fields[..at].iter().any(|other| other.name == field.name);
        if !valid_name || !valid_value || repeated || (is_pseudo && regular_seen) || FORBIDDEN.contains(&&*field.name) {
            return Err(H3Error::Message);
        }
        regular_seen |= !is_pseudo;
    }
    Ok(fields)
}

fn regular(fields: &[Field], name: &str) -> Option<String> {
    fields
        .iter()
        .find(|field| field.name == name)
        .map(|field| field.value.clone())
}

/// Names the policies that denied a CONNECT.
pub const POLICY: &str = "x-mesh-policy";
/// Names why an application was not reached.
pub const REASON: &str = "x-mesh-reason";
const FORBIDDEN: [&str; 5] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];
