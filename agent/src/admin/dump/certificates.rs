//! Our certificate, its intermediates, and the anchors (ztunnel: `admin::CertsDump`). Certificates only, never a key.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use crate::certs::Credentials;
use crate::join::Membership;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Certificates {
    identity: String,
    state: &'static str,
    cert_chain: Vec<Certificate>,
    root_certs: Vec<Certificate>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    /// Base64 of the PEM text.
    pem: String,
    /// Decimal.
    serial_number: String,
    /// RFC 3339.
    valid_from: String,
    expiration_time: String,
}

pub(super) fn of(membership: &Membership, credentials: Option<&Credentials>) -> Certificates {
    let Some(credentials) = credentials else {
        return Certificates {
            identity: membership.spiffe_id(),
            state: "Unavailable: there is no usable certificate",
            cert_chain: Vec::new(),
            root_certs: Vec::new(),
        };
    };
    let expired = credentials.not_after <= SystemTime::now();
    let roots = credentials.root_pems.iter();
    let roots = roots.flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
    Certificates {
        identity: credentials.identity.to_string(),
        state: if expired {
            "Unavailable: the certificate has expired"
        } else {
            "Available"
        },
        cert_chain: credentials.key.cert.iter().filter_map(certificate).collect(),
        root_certs: roots.filter_map(|der| certificate(&der)).collect(),
    }
}

fn certificate(der: &CertificateDer<'_>) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some(Certificate {
        pem: STANDARD.encode(pem(der)),
        serial_number: parsed.tbs_certificate.serial.to_string(),
        valid_from: rfc3339(parsed.validity().not_before)?,
        expiration_time: rfc3339(parsed.validity().not_after)?,
    })
}

fn rfc3339(time: ASN1Time) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(time.timestamp())
        .ok()?
        .format(&Rfc3339)
        .ok()
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

const LINE: usize = 64;
