//! Flows against a socket pair in place of the device.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

use mesh_core::packet::Protocol;
use tokio::task::LocalSet;

use super::*;
use crate::capture::Capture;
use crate::tun::Tun;

fn key(port: u16) -> FlowKey {
    FlowKey {
        protocol: Protocol::Udp,
        source: SocketAddr::from(([10, 0, 0, 1], port)),
        destination: SocketAddr::from(([10, 0, 0, 2], 53)),
    }
}

/// Runs a test with the flows of a capture that nobody drives.
fn run<F: Future<Output = ()>>(config: &config::Udp, test: impl FnOnce(Udp, Capture) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let config = config.clone();
    LocalSet::new().block_on(&runtime, async move {
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let capture = config::Capture {
            max_flows: 8,
            ..config::Capture::default()
        };
        let (capture, replies) = Capture::new(Tun::from_fd(ours.into()), &capture, [7; 32]).unwrap();
        test(Udp::new(&config, replies), capture).await;
    });
}

#[test]
fn a_flow_gives_what_was_captured_and_ends_when_it_is_idle() {
    run(&config::Udp::default(), async |udp, _capture| {
        let started = Instant::now();
        let mut flow = udp.captured(key(1), Bytes::from_static(b"one")).unwrap();
        assert!(udp.captured(key(1), Bytes::from_static(b"two")).is_none());
        assert_eq!(flow.recv().await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(flow.recv().await.unwrap().as_deref(), Some(&b"two"[..]));
        tokio::time::sleep(Duration::from_secs(30)).await;
        flow.send(Bytes::from_static(b"answer")).await.unwrap();
        assert!(flow.recv().await.unwrap().is_none());
        flow.ended().await;
        assert_eq!(
            started.elapsed().as_secs(),
            90,
            "idle for a minute after the last of both directions"
        );
        drop(flow);
        assert!(udp.captured(key(1), Bytes::new()).is_some(), "a new one");
    });
}

#[test]
fn the_idlest_flow_gives_way() {
    let config = config::Udp {
        max_flows: 2,
        ..config::Udp::default()
    };
    run(&config, async |udp, _capture| {
        let first = udp.captured(key(1), Bytes::new()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut second = udp.captured(key(2), Bytes::new()).unwrap();
        let third = udp.captured(key(3), Bytes::new()).unwrap();
        first.ended().await;
        drop(first);
        assert!(second.recv().await.unwrap().is_some() && udp.0.flows.borrow().len() == 2);
        drop((second, third));
        assert!(udp.0.flows.borrow().is_empty() && udp.0.changed.borrow().is_empty());
    });
}

#[test]
fn a_refusal_holds_for_a_moment() {
    run(&config::Udp::default(), async |udp, capture| {
        let stats = capture.stats();
        tokio::task::spawn_local(capture.run(|_| {}));
        let mut flow = udp.captured(key(1), Bytes::new()).unwrap();
        assert!(flow.recv().await.unwrap().is_some());
        let refused = tokio::task::spawn_local(flow.refuse(Refusal::Refused));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(udp.captured(key(1), Bytes::new()).is_none(), "no new attempt");
        }
        refused.await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(stats.snapshot().counters.packets_out, 4, "each was answered");
        assert!(udp.captured(key(1), Bytes::new()).is_some());
    });
}
