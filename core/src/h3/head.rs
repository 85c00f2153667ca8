//! The heads of a CONNECT (RFC 9114 4.4) and of a CONNECT-UDP (RFC 9298 3.4): the request names a target and carries the HBONE
//! headers, the response a status.

use super::qpack::{self, Field};
use super::{H3Error, udp_path};
use crate::connect::{CAPSULE_PROTOCOL, ConnectHead, Request, ResponseHead};

/// Encodes a CONNECT: `:method` and `:authority`, and neither `:scheme` nor `:path`; or a CONNECT-UDP with its path.
pub fn encode_request(head: &ConnectHead) -> Vec<u8> {
    let Some(by) = &head.udp_by else {
        let pseudo = [(":method", "CONNECT"), (":authority", head.authority.as_str())];
        return qpack::encode(pseudo.into_iter().chain(head.headers()));
    };
    // What has no path is a target that the far side refuses.
    let path = udp_path::encode(&head.authority).unwrap_or_else(|| "/".into());
    let fields = [
        (":method", "CONNECT"),
        (":protocol", CONNECT_UDP),
        (":scheme", "https"),
        (":authority", by.as_str()),
        (":path", path.as_str()),
        (CAPSULE_PROTOCOL, "?1"),
    ];
    qpack::encode(fields.into_iter().chain(head.headers()))
}

/// Encodes a response.
pub fn encode_response(head: &ResponseHead) -> Vec<u8> {
    let status = head.status.to_string();
    qpack::encode(std::iter::once((":status", status.as_str())).chain(head.headers()))
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
        ("CONNECT", Some(CONNECT_UDP)) => {
            let by = pseudo(":authority").filter(|authority| !authority.is_empty());
            // RFC 9298 3.4, RFC 9220 3: an extended CONNECT has all of these.
            let (Some(by), Some("https"), Some(path)) = (by, pseudo(":scheme"), pseudo(":path")) else {
                return Err(H3Error::Message);
            };
            let Some(target) = udp_path::decode(path) else {
                return Ok(Request::Other);
            };
            let head = ConnectHead::from_headers(target, |name| regular(&fields, name));
            return Ok(Request::Connect(ConnectHead {
                udp_by: Some(by.to_owned()),
                ..head
            }));
        }
        _ => return Ok(Request::Other),
    }
    // RFC 9114 4.4: a CONNECT that has a scheme or a path is malformed.
    if pseudo(":scheme").is_some() || pseudo(":path").is_some() {
        return Err(H3Error::Message);
    }
    let authority = pseudo(":authority")
        .filter(|authority| !authority.is_empty())
        .ok_or(H3Error::Message)?;
    Ok(Request::Connect(ConnectHead::from_headers(
        authority.to_owned(),
        |name| regular(&fields, name),
    )))
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
    Ok(ResponseHead::from_headers(status, |name| regular(&fields, name)))
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

/// One that came in several lines is read as one list (RFC 9110 5.3).
fn regular(fields: &[Field], name: &str) -> Option<String> {
    let lines = fields.iter().filter(|field| field.name == name);
    let lines: Vec<_> = lines.map(|field| field.value.as_str()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

const CONNECT_UDP: &str = "connect-udp";
const FORBIDDEN: [&str; 5] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
];
