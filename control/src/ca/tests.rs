#![allow(clippy::unwrap_used)]
use super::*;
use mesh_core::identity::Identity;

fn settings(dir: &std::path::Path) -> Settings {
    Settings {
        data_dir: dir.to_owned(),
        ..Settings::default()
    }
}

fn csr(name: &str) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[test]
fn made_once_and_found_again() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::in_memory().unwrap();
    let first = Authority::open(&settings(dir.path()), &store).unwrap();
    let again = Authority::open(&settings(dir.path()), &store).unwrap();
    assert_eq!(first.signing(), again.signing());
    let key = keys::path(&settings(dir.path()), first.signing());
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn only_the_public_key_of_a_request_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::in_memory().unwrap();
    let ca = Authority::open(&settings(dir.path()), &store).unwrap();
    let (_, pem) = csr("evil.example");
    let identity: Identity = "spiffe://mesh.internal/ns/shop/sa/orders".parse().unwrap();
    let spki = public_key_of_csr(&pem).unwrap();
    let leaf = ca.issue(&spki, &identity, Duration::from_secs(3600)).unwrap();
    let peer = PeerCertificate::read(&leaf.der).unwrap();
    assert_eq!(peer.identity, identity);
    assert_eq!(
        (peer.serial, peer.spki_sha256, peer.not_after),
        (leaf.serial, leaf.spki_sha256, leaf.not_after)
    );
    assert!(leaf::is_signed_by(&leaf.der, &ca.anchors[0].der));
    let (_, cert) = x509_parser::parse_x509_certificate(&leaf.der).unwrap();
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1);
    let age = now() - cert.validity().not_before.timestamp();
    assert!((299..=305).contains(&age), "{age}");
}

#[test]
fn a_request_not_signed_by_its_key_is_refused() {
    let (_, pem) = csr("a");
    let der = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
    let mut broken = der;
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let text = pem_of(&broken).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    assert!(public_key_of_csr(&text).is_err());
    assert!(public_key_of_csr("nonsense").is_err());
}

#[test]
fn a_plugged_ca_signs_through_its_chain() {
    let dir = tempfile::tempdir().unwrap();
    let root_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut middle_params = CertificateParams::default();
    middle_params.distinguished_name.push(DnType::CommonName, "middle");
    middle_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::from_ca_cert_der(root.der(), root_key).unwrap();
    let middle = middle_params.signed_by(&key, &issuer).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut settings = settings(dir.path());
    settings.ca = Some(crate::config::PluggedCa {
        root: file("root", root.pem()),
        chain: Some(file("chain", middle.pem())),
        key: file("key", key.serialize_pem()),
    });
    let ca = Authority::open(&settings, &Store::in_memory().unwrap()).unwrap();
    let identity = Identity::control_plane("mesh.internal").unwrap();
    let spki = public_key_of_csr(&csr("a").1).unwrap();
    let leaf = ca.issue(&spki, &identity, Duration::from_secs(60)).unwrap();
    assert!(leaf::is_signed_by(&leaf.der, middle.der()));
    assert_eq!(ca.chain(&leaf).len(), 3);
    settings.ca.as_mut().unwrap().key = file("other", KeyPair::generate().unwrap().serialize_pem());
    assert!(Authority::open(&settings, &Store::in_memory().unwrap()).is_err());
}
