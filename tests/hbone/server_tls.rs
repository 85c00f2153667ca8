//! Who gets as far as HTTP/2: TLS 1.3, two suites, ALPN `h2`, a certificate of a member.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_agent::certs::Pem;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::{ClientConfig, NamedGroup};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bare::{client_tls, connect, member_tls};
use crate::frames::{PREFACE, SETTINGS, Wire};
use crate::mesh::{Ca, Member, run};

/// A handshake and what is read after it: either the first frame, or why there is none.
async fn first_frame(peer: std::net::SocketAddr, tls: ClientConfig) -> Result<(), String> {
    let stream = connect(peer, tls).await.map_err(|error| error.to_string())?;
    let mut wire = Wire(stream);
    // A refusal may overtake what we send.
    let _ = wire.0.write_all(PREFACE).await;
    let frame = wire.read().await.map_err(|error| error.to_string())?;
    assert_eq!(frame.kind, SETTINGS);
    Ok(())
}

fn only_suite(pem: &Pem, suite: rustls::SupportedCipherSuite) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![suite];
    client_tls(Some(pem), provider)
}

#[test]
fn the_two_suites_of_ztunnel_are_spoken_and_no_other() {
    run(async || {
        let ca = Ca::new();
        let (orders, web) = (Member::new("orders", &ca.member("orders")), ca.member("web"));
        let peer = orders.serve();
        for suite in [
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
        ] {
            let stream = connect(peer, only_suite(&web, suite)).await.unwrap();
            let (_, session) = stream.get_ref();
            assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(session.negotiated_cipher_suite(), Some(suite));
        }
        let refused = first_frame(peer, only_suite(&web, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256)).await;
        assert!(
            refused.as_ref().is_err_and(|why| why.contains("HandshakeFailure")),
            "{refused:?}"
        );
    });
}

#[test]
fn the_key_exchange_is_post_quantum_where_the_client_can() {
    run(async || {
        let ca = Ca::new();
        let (orders, web) = (Member::new("orders", &ca.member("orders")), ca.member("web"));
        let peer = orders.serve();
        for (groups, expected) in [
            (
                vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
                NamedGroup::X25519MLKEM768,
            ),
            (vec![aws_lc_rs::kx_group::X25519], NamedGroup::X25519),
            (vec![aws_lc_rs::kx_group::SECP256R1], NamedGroup::secp256r1),
        ] {
            let mut provider = aws_lc_rs::default_provider();
            provider.kx_groups = groups;
            let stream = connect(peer, client_tls(Some(&web), provider)).await.unwrap();
            let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
            assert_eq!(group.name(), expected);
        }
    });
}

#[test]
fn alpn_is_demanded() {
    run(async || {
        let ca = Ca::new();
        let (orders, web) = (Member::new("orders", &ca.member("orders")), ca.member("web"));
        let peer = orders.serve();
        for (alpn, expected) in [
            (vec![b"http/1.1".to_vec()], Some("NoApplicationProtocol")),
            (vec![b"h3".to_vec()], Some("NoApplicationProtocol")),
            // Without a word about it there is nothing that an alert could name.
            (vec![], Some("")),
            (vec![b"http/1.1".to_vec(), b"h2".to_vec()], None),
        ] {
            let mut tls = member_tls(&web);
            tls.alpn_protocols = alpn.clone();
            let got = first_frame(peer, tls).await;
            let as_expected = match (&got, expected) {
                (Err(why), Some(expected)) => why.contains(expected),
                (Ok(()), None) => true,
                _ => false,
            };
            assert!(as_expected, "{alpn:?}: {got:?}");
        }
    });
}

#[test]
fn a_certificate_of_our_trust_domain_is_demanded() {
    run(async || {
        let ca = Ca::new();
        let orders = Member::new("orders", &ca.member("orders"));
        let peer = orders.serve();
        let foreign_ca = Ca::new().member("web");
        let foreign_domain = ca.leaf("spiffe://elsewhere/ns/shop/sa/web", 30);
        for (what, tls, expected) in [
            (
                "none",
                client_tls(None, aws_lc_rs::default_provider()),
                "CertificateRequired",
            ),
            ("foreign CA", member_tls(&foreign_ca), "DecryptError"),
            ("foreign trust domain", member_tls(&foreign_domain), "HandshakeFailure"),
        ] {
            let refused = first_frame(peer, tls).await;
            assert!(
                refused.as_ref().is_err_and(|why| why.contains(expected)),
                "{what}: {refused:?}"
            );
        }
        first_frame(peer, member_tls(&ca.member("web"))).await.unwrap();
    });
}

/// A ClientHello as TLS 1.2 has it: no extension says that anything later is spoken.
#[test]
fn tls_1_2_is_not_spoken() {
    run(async || {
        let orders = Member::new("orders", &Ca::new().member("orders"));
        let peer = orders.serve();
        let mut stream = TcpStream::connect(peer).await.unwrap();
        let mut hello = vec![3, 3];
        hello.extend_from_slice(&[7; 32]);
        // No session, ECDHE_ECDSA and ECDHE_RSA with AES-128-GCM, no compression.
        hello.extend_from_slice(&[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
        // X25519 and P-256; uncompressed points; ECDSA and RSA-PSS with SHA-256.
        let extensions = [
            0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 6, 0, 4, 4, 3, 8, 4,
        ];
        hello.extend_from_slice(&[0, extensions.len() as u8]);
        hello.extend_from_slice(&extensions);
        let mut record = vec![22, 3, 1, 0, hello.len() as u8 + 4, 1, 0, 0, hello.len() as u8];
        record.extend_from_slice(&hello);
        stream.write_all(&record).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        // A fatal alert: protocol_version (RFC 8446 6.2).
        assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]), "{answer:?}");
    });
}

/// Counts what a server gives for a later resumption.
#[derive(Default)]
struct Tickets(AtomicUsize);

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets")
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[test]
fn no_session_can_be_resumed() {
    run(async || {
        let ca = Ca::new();
        let orders = Member::new("orders", &ca.member("orders"));
        let peer = orders.serve();
        let tickets = Arc::<Tickets>::default();
        let mut tls = member_tls(&ca.member("web"));
        tls.resumption = rustls::client::Resumption::store(tickets.clone());
        let mut wire = Wire(connect(peer, tls).await.unwrap());
        wire.greet(PREFACE).await;
        wire.round_trip().await;
        assert_eq!(tickets.0.load(Ordering::Relaxed), 0);
        assert_eq!(wire.0.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    });
}
