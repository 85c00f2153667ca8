//! Who gets a tunnel: exactly whom the world names, under our CA, today.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::failure::Failure;
use mesh_core::transport::Preference;
use mesh_core::world::{Delta, Revocation};
use rustls::crypto::aws_lc_rs;

use crate::mesh::{Ca, Member, dial, echo, echo_server, over, over_each};

#[test]
fn the_named_identity_gets_a_tunnel_and_no_other() {
    over_each(async || {
        let ca = Ca::new();
        let (web, orders) = (
            Member::new("web", &ca.member("web")),
            Member::new("orders", &ca.member("orders")),
        );
        let application = echo_server().await;
        let peer = orders.serve();
        let tunnels = web.dialer();
        let mut stream = dial(&tunnels, peer, &["other", "orders"], &application).await.unwrap();
        echo(&mut stream, b"hello").await.unwrap();
        for names in [&["web"][..], &[]] {
            let refused = dial(&tunnels, peer, names, &application).await.unwrap_err();
            assert!(
                matches!(&refused, Failure::Tls(why) if why.contains("identity mismatch")),
                "{refused}"
            );
        }
    });
}

#[test]
fn strangers_are_turned_away_by_the_server() {
    over_each(async || {
        let ca = Ca::new();
        let orders = Member::new("orders", &ca.member("orders"));
        let application = echo_server().await;
        let peer = orders.serve();
        let foreign = Ca::new();
        let mut of_a_foreign_ca = foreign.member("web");
        of_a_foreign_ca.roots = vec![ca.pem.clone()];
        let expired = ca.leaf("spiffe://mesh.internal/ns/shop/sa/web", 0);
        let of_another_domain = ca.leaf("spiffe://elsewhere/ns/shop/sa/web", 30);
        for (what, pem) in [
            ("foreign CA", of_a_foreign_ca),
            ("expired", expired),
            ("other trust domain", of_another_domain),
        ] {
            let stranger = Member::new("web", &pem);
            let tunnels = stranger.dialer();
            let refused = dial(&tunnels, peer, &["orders"], &application).await;
            assert!(refused.is_err(), "{what}: got a tunnel");
        }
        // An alias opens the door.
        let mut friendly = Member::new("orders", &ca.member("orders"));
        let shared = Arc::get_mut(&mut friendly.shared).unwrap();
        Arc::get_mut(&mut shared.config).unwrap().tunnel.trust_domain_aliases = vec!["elsewhere".into()];
        let peer = friendly.serve();
        let web = Member::new("web", &ca.leaf("spiffe://elsewhere/ns/shop/sa/web", 30));
        let tunnels = web.dialer();
        dial(&tunnels, peer, &["orders"], &application).await.unwrap();
    });
}

#[test]
fn a_server_under_another_ca_is_refused() {
    over_each(async || {
        let (ours, theirs) = (Ca::new(), Ca::new());
        let (web, orders) = (
            Member::new("web", &ours.member("web")),
            Member::new("orders", &theirs.member("orders")),
        );
        let (tunnels, peer) = (web.dialer(), orders.serve());
        let refused = dial(&tunnels, peer, &["orders"], "127.0.0.1:1").await.unwrap_err();
        assert!(matches!(refused, Failure::Tls(_)), "{refused}");
    });
}

/// A server that knows no other group than X25519MLKEM768 is reached, so that is what is negotiated; one that knows only
/// X25519 is, too.
#[test]
fn the_key_exchange_is_post_quantum_where_it_can_be() {
    over(Preference::Quic, async || {
        let ca = Ca::new();
        let web = Member::new("web", &ca.member("web"));
        let tunnels = web.dialer();
        for group in [aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519] {
            let mut provider = aws_lc_rs::default_provider();
            provider.kx_groups = vec![group];
            let credentials = ca.member("orders").credentials().unwrap();
            let resolver = rustls::sign::SingleCertAndKey::from(credentials.key.clone());
            let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(resolver));
            tls.alpn_protocols = vec![b"h3".to_vec()];
            let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
            let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
            let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
            let peer = server.local_addr().unwrap();
            let accepted = tokio::task::spawn_local(async move {
                let connection = server.accept().await.unwrap().await.unwrap();
                connection.accept_bi().await.is_ok()
            });
            let dialling = tokio::task::spawn_local({
                let tunnels = tunnels.clone();
                async move { dial(&tunnels, peer, &["orders"], "127.0.0.1:1").await.map(drop) }
            });
            assert!(accepted.await.unwrap(), "no request came");
            dialling.abort();
        }
    });
}

#[test]
fn a_renewal_drops_no_stream_and_a_revocation_does() {
    over_each(async || {
        let ca = Ca::new();
        let (web, orders) = (
            Member::new("web", &ca.member("web")),
            Member::new("orders", &ca.member("orders")),
        );
        let application = echo_server().await;
        let peer = orders.serve();
        let tunnels = web.dialer();
        let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        echo(&mut stream, b"before").await.unwrap();
        for (member, name) in [(&orders, "orders"), (&web, "web")] {
            member
                .credentials
                .send_replace(Some(Arc::new(ca.member(name).credentials().unwrap())));
        }
        echo(&mut stream, b"after").await.unwrap();
        dial(&tunnels, peer, &["orders"], &application).await.unwrap();

        let fresh = ca.member("web");
        let doomed = Member::new("web", &fresh);
        let tunnels = doomed.dialer();
        let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        echo(&mut stream, b"still trusted").await.unwrap();
        let revoked = Revocation {
            serials: vec![fresh.credentials().unwrap().serial],
            ..Revocation::default()
        };
        orders.change(Delta {
            revocations: vec![("web".into(), revoked)],
            ..Delta::default()
        });
        let end = mesh_agent::copy::Source::recv(&mut stream.source).await;
        assert!(end.is_err(), "a revoked peer's stream lives on");
        assert!(
            dial(&tunnels, peer, &["orders"], &application).await.is_err(),
            "a revoked peer got a new tunnel"
        );
    });
}

#[test]
fn a_crl_ends_live_tunnels_and_lets_no_new_ones_in() {
    over_each(async || {
        let ca = Ca::new();
        let (web_pem, orders_pem) = (ca.member("web"), ca.member("orders"));
        let application = echo_server().await;
        // Whoever of the two reads the list, the other is cut off.
        for (inbound, revoked) in [(true, &web_pem), (false, &orders_pem)] {
            let (web, orders) = (Member::new("web", &web_pem), Member::new("orders", &orders_pem));
            let peer = orders.serve();
            let tunnels = web.dialer();
            let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
            let reader = if inbound { &orders } else { &web };
            reader.crls.send_replace(ca.crls(&[&ca.member("nobody")]));
            echo(&mut stream, b"somebody else").await.unwrap();
            reader.crls.send_replace(ca.crls(&[revoked]));
            let read = Instant::now();
            let end = mesh_agent::copy::Source::recv(&mut stream.source).await;
            assert!(end.is_err(), "a revoked peer's stream lives on");
            assert!(
                read.elapsed() < Duration::from_secs(1),
                "cut after {:?}",
                read.elapsed()
            );

            let refused = dial(&tunnels, peer, &["orders"], &application).await.unwrap_err();
            let named = match inbound {
                true => matches!(refused, Failure::RevokedHere),
                false => matches!(refused, Failure::Revoked),
            };
            assert!(named, "inbound {inbound}: {refused}");
            reader.crls.send_replace(ca.crls(&[]));
            dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        }
    });
}
