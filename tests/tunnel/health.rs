//! Out of rotation: what is still served, and when the application counts as ill.

use std::net::Ipv4Addr;

use mesh_agent::health;
use mesh_core::health::{Probe, TcpSocket, Verdict};
use mesh_core::world::Delta;

use crate::mesh::{Ca, Member, dial, echo, echo_server, run};

fn probe(port: u16) -> Delta {
    Delta {
        probe: Some(Probe {
            period_seconds: 1,
            tcp_socket: Some(TcpSocket {
                port: port.into(),
                ..TcpSocket::default()
            }),
            ..Probe::default()
        }),
        probe_synced: true,
        ..Delta::default()
    }
}

#[test]
fn a_drained_member_serves_by_its_last_record_when_the_world_forgets_it() {
    run(async || {
        let ca = Ca::new();
        let web = Member::new("web", &ca.member("web"));
        let orders = Member::new("orders", &ca.member("orders"));
        let (peer, quic, target) = (orders.serve(), web.dialer(), echo_server().await);
        tokio::task::spawn_local(health::follow(orders.shared.clone()));
        let forgotten = || Delta {
            removed_addresses: vec!["mesh//orders".into()],
            ..Delta::default()
        };
        let record = orders.shared.own_workload(&orders.shared.world()).unwrap();
        let back = || Delta {
            workloads: vec![(*record).clone()],
            ..Delta::default()
        };

        orders.shared.standing.set_draining(Some(1));
        while orders.shared.standing.kept().is_none() {
            tokio::task::yield_now().await;
        }
        orders.change(forgotten());
        let mut stream = dial(&quic, peer, &["orders"], &target).await.unwrap();
        echo(&mut stream, b"while draining").await.unwrap();
        // Back in rotation, and not registered yet.
        orders.shared.standing.set_draining(None);
        let mut stream = dial(&quic, peer, &["orders"], &target).await.unwrap();
        echo(&mut stream, b"before the record is back").await.unwrap();
        orders.change(back());
        while orders.shared.standing.kept().is_some() {
            tokio::task::yield_now().await;
        }
        // In rotation the world alone counts.
        orders.change(forgotten());
        assert!(dial(&quic, peer, &["orders"], &target).await.is_err());
    });
}

#[test]
fn the_probe_of_the_world_decides_and_may_change() {
    run(async || {
        let orders = Member::new("orders", &Ca::new().member("orders"));
        tokio::task::spawn_local(health::run(orders.shared.clone()));
        let mut health = orders.shared.standing.watch();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let open = listener.local_addr().unwrap().port();
        assert_eq!(health.borrow().verdict, Verdict::Unknown, "nobody has said yet");
        orders.change(probe(open));
        health.wait_for(|now| now.verdict == Verdict::Healthy).await.unwrap();
        drop(listener);
        let ill = health
            .wait_for(|now| now.verdict != Verdict::Healthy)
            .await
            .unwrap()
            .clone();
        let Verdict::Unhealthy(reason) = ill.verdict else {
            panic!("{ill:?}");
        };
        assert!(reason.contains(&format!("127.0.0.1:{open}")), "{reason}");
        // On the other family's loopback it is found as well.
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        orders.change(probe(listener.local_addr().unwrap().port()));
        health.wait_for(|now| now.verdict == Verdict::Healthy).await.unwrap();
        drop(listener);
        health.wait_for(|now| now.verdict != Verdict::Healthy).await.unwrap();
        orders.change(Delta {
            removed_probe: true,
            ..Delta::default()
        });
        health.wait_for(|now| now.verdict == Verdict::Healthy).await.unwrap();
    });
}
