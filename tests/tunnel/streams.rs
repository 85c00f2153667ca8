//! What may be asked for in a tunnel, and how a stream ends.

use std::time::{Duration, Instant};

use mesh_agent::copy::{Sink as _, Source as _};
use mesh_agent::failure::Failure;
use mesh_core::policy::{Action, Match, Policy, Scope, StringMatch};
use mesh_core::world::{Delta, Workload};

use crate::mesh::{Ca, Member, dial, echo, echo_server, over_each, target, workload};

fn deny_web() -> Policy {
    Policy {
        key: "shop/no-web".into(),
        namespace: "shop".into(),
        name: "no-web".into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        dry_run: false,
        rules: vec![vec![vec![Match {
            principals: vec![StringMatch::Exact("mesh.internal/ns/shop/sa/web".into())],
            ..Match::default()
        }]]],
    }
}

fn pair() -> (Member, Member) {
    let ca = Ca::new();
    (
        Member::new("web", &ca.member("web")),
        Member::new("orders", &ca.member("orders")),
    )
}

#[test]
fn only_our_own_addresses_and_none_of_our_ports() {
    over_each(async || {
        let (web, orders) = pair();
        let peer = orders.serve();
        let tunnels = web.dialer();
        for (target, expected) in [
            ("127.0.0.1:80", 400),
            ("169.254.169.254:80", 400),
            ("10.9.9.8:80", 400),
            ("[::1]:80", 400),
            ("0.0.0.0:80", 400),
            ("10.9.9.9", 400),
            ("10.9.9.9:0", 400),
            ("10.9.9.9:15008", 503),
            ("10.9.9.9:15020", 503),
            ("10.9.9.9:15021", 503),
            ("10.9.9.9:53", 503),
            ("orders:80", 503),
        ] {
            let refused = dial(&tunnels, peer, &["orders"], target).await.unwrap_err();
            assert!(
                matches!(refused, Failure::Status { status, .. } if status == expected),
                "{target}: {refused}"
            );
        }
    });
}

#[test]
fn a_closed_port_is_refused_and_named() {
    over_each(async || {
        let (web, orders) = pair();
        let peer = orders.serve();
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let refused = dial(&web.dialer(), peer, &["orders"], &target(closed))
            .await
            .unwrap_err();
        let expected = matches!(&refused, Failure::Status { status: 503, reason: Some(why) } if why == "refused");
        assert!(expected, "{refused}");
    });
}

#[test]
fn a_denial_names_its_policy_and_a_change_cuts_what_lives() {
    over_each(async || {
        let (web, orders) = pair();
        let application = echo_server().await;
        let peer = orders.serve();
        let tunnels = web.dialer();
        let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        echo(&mut stream, b"allowed").await.unwrap();

        orders.change(Delta {
            policies: vec![deny_web()],
            ..Delta::default()
        });
        let changed = Instant::now();
        let end = stream.source.recv().await.unwrap_err();
        assert!(matches!(end, Failure::PolicyChangeRemote(None)), "{end}");
        assert!(changed.elapsed() < Duration::from_secs(1));
        let refused = dial(&tunnels, peer, &["orders"], &application).await.unwrap_err();
        let named = matches!(&refused, Failure::Status { status: 401, reason: Some(why) } if why == "shop/no-web");
        assert!(named, "{refused}");
        orders.change(Delta {
            removed_policies: vec!["shop/no-web".into()],
            ..Delta::default()
        });
        dial(&tunnels, peer, &["orders"], &application).await.unwrap();
    });
}

/// What istiod does when a selector begins to fit, because the policy changed or the workload's labels did: the policy itself
/// does not change.
#[test]
fn a_policy_that_is_attached_to_us_cuts_what_lives() {
    over_each(async || {
        let (web, orders) = pair();
        let application = echo_server().await;
        let peer = orders.serve();
        let tunnels = web.dialer();
        let selected = Policy {
            scope: Scope::WorkloadSelector,
            ..deny_web()
        };
        orders.change(Delta {
            policies: vec![selected],
            ..Delta::default()
        });
        let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        echo(&mut stream, b"not ours yet").await.unwrap();
        let attach = |policies: &[&str]| Delta {
            workloads: vec![Workload {
                authorization_policies: policies.iter().map(|key| (*key).into()).collect(),
                ..workload("orders")
            }],
            ..Delta::default()
        };
        orders.change(attach(&["shop/no-web"]));
        let changed = Instant::now();
        let end = stream.source.recv().await.unwrap_err();
        assert!(matches!(end, Failure::PolicyChangeRemote(None)), "{end}");
        assert!(changed.elapsed() < Duration::from_secs(1));
        orders.change(attach(&[]));
        dial(&tunnels, peer, &["orders"], &application).await.unwrap();
    });
}

#[test]
fn nothing_is_served_before_the_first_policies() {
    over_each(async || {
        let (web, orders) = pair();
        let synced = orders.world.borrow().clone();
        let workloads = synced.workloads().map(|one| (**one).clone()).collect();
        let fresh = mesh_core::world::World::default().apply(Delta {
            workloads,
            ..Delta::default()
        });
        orders.world.send_replace(std::sync::Arc::new(fresh));
        let peer = orders.serve();
        let refused = dial(&web.dialer(), peer, &["orders"], "10.9.9.9:80").await.unwrap_err();
        let expected = matches!(&refused, Failure::Status { status: 503, reason: Some(why) } if why == "not-synced");
        assert!(expected, "{refused}");
    });
}

#[test]
fn half_close_and_reset_travel() {
    over_each(async || {
        let (web, orders) = pair();
        let application = echo_server().await;
        let peer = orders.serve();
        let tunnels = web.dialer();
        let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        stream.sink.send(bytes::Bytes::from_static(b"bye")).await.unwrap();
        stream.sink.finish().await.unwrap();
        let mut got = Vec::new();
        while let Some(bytes) = stream.source.recv().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
        assert_eq!(got, b"bye");

        // An application that resets is seen as a reset, not as an end.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap());
        let mut stream = dial(&tunnels, peer, &["orders"], &target).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&accepted)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(accepted);
        let end = stream.source.recv().await.unwrap_err();
        assert!(matches!(end, Failure::PeerReset(_)), "{end}");

        // A stream that is dropped unfinished is a reset to the application.
        let stream = dial(&tunnels, peer, &["orders"], &target).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        drop(stream);
        let read = tokio::io::AsyncReadExt::read(&mut accepted, &mut [0]).await;
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_black_hole_times_out() {
    over_each(async || {
        let (web, _) = pair();
        // Bound, and never read.
        let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _udp = std::net::UdpSocket::bind(hole.local_addr().unwrap()).unwrap();
        let started = Instant::now();
        let dialler = web.dialer();
        let dialled = dial(&dialler, hole.local_addr().unwrap(), &["orders"], "10.9.9.9:80");
        let limit = Duration::from_millis(web.shared.config.outbound.connect_timeout_ms);
        assert!(tokio::time::timeout(limit, dialled).await.is_err());
        assert!(started.elapsed() >= limit);
    });
}

#[test]
fn who_drains_serves_what_lives_and_refuses_the_rest_at_once() {
    over_each(async || {
        let (web, orders) = pair();
        let application = echo_server().await;
        let (peer, serving) = orders.serve_drainable();
        let tunnels = web.dialer();
        let mut stream = dial(&tunnels, peer, &["orders"], &application).await.unwrap();
        echo(&mut stream, b"before").await.unwrap();
        serving.drain();
        echo(&mut stream, b"while draining").await.unwrap();
        // Refused on the tunnel that was open, and then on a new one; never left to time out.
        let started = Instant::now();
        loop {
            let Err(failure) = dial(&tunnels, peer, &["orders"], &application).await else {
                continue;
            };
            assert!(failure.is_retryable(), "{failure}");
            if matches!(failure, Failure::Unreachable(_)) {
                break;
            }
        }
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        echo(&mut stream, b"still").await.unwrap();
    });
}

#[test]
fn a_peer_gets_so_many_tunnels_and_connects_however_it_asks() {
    over_each(async || {
        let ca = Ca::new();
        let web = Member::new("web", &ca.member("web"));
        let mut orders = Member::new("orders", &ca.member("orders"));
        let shared = std::sync::Arc::get_mut(&mut orders.shared).unwrap();
        let tunnel = &mut std::sync::Arc::get_mut(&mut shared.config).unwrap().tunnel;
        (tunnel.max_tunnels_per_peer, tunnel.max_connects_per_second) = (2, 3);
        let peer = orders.serve();
        // Each dialler has a pool of its own, so each opens a tunnel of its own.
        let diallers = [web.dialer(), web.dialer(), web.dialer()];
        let mut statuses = Vec::new();
        for dialler in &diallers {
            for _ in 0..4 {
                statuses.push(dial(dialler, peer, &["orders"], "10.9.9.8:80").await.unwrap_err());
            }
        }
        let served = |failure: &Failure| matches!(failure, Failure::Status { status: 400, .. });
        // Twice three, and what a busy machine's time refills.
        let count = statuses.iter().take(8).filter(|one| served(one)).count();
        assert!((6..8).contains(&count), "{count} of 8 were served: {statuses:?}");
        assert!(!statuses.iter().skip(8).any(served), "a third tunnel: {statuses:?}");
        // Another member is not concerned.
        let guest = Member::new("guest", &ca.member("guest"));
        let dialled = dial(&guest.dialer(), peer, &["orders"], "10.9.9.8:80").await;
        assert!(served(&dialled.unwrap_err()));
    });
}
