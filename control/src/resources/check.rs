//! Checks that several kinds share, and the findings that they report.

use std::net::IpAddr;

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path, such as `spec.hosts[0]`.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Finding {
    /// A finding about a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Reports a field that Istio has and we do not.
pub(super) fn unsupported<T>(value: Option<&T>, field: &str, why: &str, findings: &mut Vec<Finding>) {
    if value.is_some() {
        let message = format!("this field is not supported by mesh-control: {why}");
        findings.push(Finding::new(field, message));
    }
}

/// Whether `text` is a name as Kubernetes has them (RFC 1123 subdomain): lower case letters, digits, `-` and `.`.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Whether `text` is a host name; upper case is let through, as is a trailing part of digits.
pub fn is_host(text: &str) -> bool {
    is_name(&text.to_ascii_lowercase()) && text.parse::<IpAddr>().is_err()
}

/// Whether `text` is a host name whose first label may be `*`.
pub fn is_host_or_wildcard(text: &str) -> bool {
    is_host(text.strip_prefix("*.").unwrap_or(text))
}

/// Checks a port number.
pub(super) fn port(number: u32, field: &str, findings: &mut Vec<Finding>) {
    if !(1..=65_535).contains(&number) {
        findings.push(Finding::new(
            field,
            format!("{number} is not a port; ports are 1 to 65535"),
        ));
    }
}

/// Checks an address or CIDR range.
pub(super) fn address_or_range(text: &str, field: &str, findings: &mut Vec<Finding>) {
    if parse_range(text).is_none() {
        findings.push(Finding::new(
            field,
            format!("{text:?} is neither an IP address nor a CIDR range"),
        ));
    }
}

/// An address (as its full-length range) or a CIDR range.
pub fn parse_range(text: &str) -> Option<ipnet::IpNet> {
    text.parse::<ipnet::IpNet>()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(ipnet::IpNet::from))
}

/// Checks a part of a SPIFFE ID.
pub(super) fn spiffe_part(text: &str, field: &str, findings: &mut Vec<Finding>) {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if text.is_empty() || !text.bytes().all(fits) {
        let message = format!("{text:?} cannot be part of a SPIFFE ID: use letters, digits, '.', '-', '_'");
        findings.push(Finding::new(field, message));
    }
}
