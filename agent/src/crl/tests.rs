//! Lists of a CA that rcgen plays.
#![allow(clippy::unwrap_used)]

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use time::OffsetDateTime;

use super::*;
use crate::tls::PeerCertificate;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

impl Ca {
    fn new(name: &str, usages: &[KeyUsagePurpose]) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        params.distinguished_name.push(DnType::CommonName, name);
        let der = params.self_signed(&key).unwrap().der().clone();
        // The key signs all the same; it is its certificate that does not allow it.
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    fn signing(name: &str) -> Self {
        Self::new(name, &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign])
    }

    fn crl(&self, serials: &[&[u8]]) -> rcgen::CertificateRevocationList {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }

    fn leaf(&self, serial: &[u8]) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }
}

fn revoked(crls: &Crls, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> bool {
    let peer = PeerCertificate::parse_chain(leaf, intermediates).unwrap();
    peer.chain.iter().any(|one| crls.contains(one))
}

#[test]
fn a_list_names_certificates_by_issuer_and_serial() {
    let (ca, other) = (Ca::signing("one"), Ca::signing("other"));
    // With a high bit, DER puts a zero in front.
    let list = ca.crl(&[&[0x81, 7], &[5]]);
    let anchors = [other.der.clone(), ca.der.clone()];
    for bytes in [list.der().to_vec(), list.pem().unwrap().into_bytes()] {
        let crls = Crls::default().next(&bytes, &anchors);
        assert_eq!(crls.problems, Vec::<String>::new());
        assert_eq!(crls.lists[0].len(), 2);
        assert!(crls.lists[0].next_update.is_some());
        assert!(revoked(&crls, &ca.leaf(&[0x81, 7]), &[]));
        assert!(revoked(&crls, &ca.leaf(&[5]), &[]));
        assert!(!revoked(&crls, &ca.leaf(&[6]), &[]));
        assert!(
            !revoked(&crls, &other.leaf(&[5]), &[]),
            "the same serial of another issuer"
        );
        // A revoked intermediate takes along what it issued.
        assert!(revoked(&crls, &other.leaf(&[9]), &[ca.leaf(&[5])]));
    }
}

#[test]
fn what_cannot_be_used_leaves_what_is_in_force() {
    let (ca, stranger) = (Ca::signing("one"), Ca::signing("one"));
    let mute = Ca::new("mute", &[KeyUsagePurpose::KeyCertSign]);
    let anchors = [ca.der.clone(), mute.der.clone()];
    let held = Crls::default().next(ca.crl(&[&[5]]).der(), &anchors);
    let doomed = ca.leaf(&[5]);
    let pem = ca.crl(&[]).pem().unwrap();
    for (bytes, word) in [
        (stranger.crl(&[]).der().to_vec(), "none of our trust anchors"),
        (mute.crl(&[]).der().to_vec(), "none of our trust anchors"),
        (b"not a list".to_vec(), "holds no CRL"),
        (ca.crl(&[]).der()[..40].to_vec(), "is not a CRL"),
        (pem.replace("END", "DNE").into_bytes(), "PEM"),
    ] {
        let next = held.next(&bytes, &anchors);
        let problems = &next.problems;
        assert!(
            problems.iter().any(|problem| problem.contains(word)),
            "{word} in {problems:?}"
        );
        assert!(revoked(&next, &doomed, &[]), "{word}");
    }
    // One list may be good and another not.
    let both = [pem.clone(), stranger.crl(&[]).pem().unwrap()].concat();
    let next = held.next(both.as_bytes(), &anchors);
    assert_eq!((next.lists.len(), next.problems.len()), (1, 1));
    assert!(!revoked(&next, &doomed, &[]));
    // An empty list, or file, says that nothing is revoked.
    for bytes in [pem.into_bytes(), b"\n".to_vec()] {
        let next = held.next(&bytes, &anchors);
        assert!(next.problems.is_empty() && !revoked(&next, &doomed, &[]));
    }
}
