//! The loop against a socket pair in place of the device: what is read as garbage is counted, a datagram is answered.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;

use mesh_core::packet::build::{self, Checksum};

use super::*;

fn fixture() -> (Capture, Replies, tokio::net::UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let config = config::Capture {
        max_flows: 8,
        ..config::Capture::default()
    };
    let (capture, replies) = Capture::new(Tun::from_fd(ours.into()), &config, [7; 32]).unwrap();
    (capture, replies, tokio::net::UnixDatagram::from_std(theirs).unwrap())
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_datagram_is_told_and_answered() {
    let (capture, replies, kernel) = fixture();
    let stats = capture.stats();
    let (app, mesh) = (address("100.64.100.1:4000"), address("100.64.100.53:53"));
    let query = build::datagram(app, mesh, b"query", Checksum::Full).unwrap();
    kernel.send(b"garbage").await.unwrap();
    kernel.send(&query).await.unwrap();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let run = capture.run(move |captured| {
        if let Captured::Datagram { key, payload } = captured {
            assert_eq!((key.source, key.destination), (app, mesh));
            replies.datagram(key, b"answer");
            told.send(payload).unwrap();
        }
    });
    let mut answer = vec![0; 2048];
    let length = tokio::select! {
        error = run => panic!("the loop ended: {error}"),
        length = kernel.recv(&mut answer) => length.unwrap(),
    };
    assert_eq!(heard.recv().await.unwrap(), Bytes::from_static(b"query"));
    assert!(answer[..length].ends_with(b"answer"));
    assert_eq!(stats.snapshot().counters.malformed, 1);
}
