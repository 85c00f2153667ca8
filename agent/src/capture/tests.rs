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

/// A TCP segment for a packet that came out of the device: its ports turned round, with these flags.
fn answer(packet: &[u8], flags: u8) -> Vec<u8> {
    let packet = mesh_core::packet::Packet::parse(packet).unwrap();
    let mesh_core::packet::Transport::Tcp(tcp) = packet.transport() else {
        panic!("not TCP")
    };
    let key = packet.key().unwrap();
    let control = build::Control {
        flags,
        sequence: 7,
        acknowledgement: tcp.sequence().wrapping_add(1),
        window: 1000,
    };
    build::segment(key.destination, key.source, control).unwrap()
}

#[tokio::test]
async fn what_we_open_is_answered_refused_or_given_up() {
    use mesh_core::packet::Flags;
    let (capture, _, kernel) = fixture();
    let (opener, stats) = (capture.opener(), capture.stats());
    let application = address("10.0.0.1:80");
    let limit = std::time::Duration::from_secs(30);
    let work = async {
        let caller = "10.0.0.2".parse().unwrap();
        let mut packet = vec![0; 2048];
        for flags in [Flags::SYN | Flags::ACK, Flags::RST | Flags::ACK] {
            let far = async {
                let length = kernel.recv(&mut packet).await.unwrap();
                kernel.send(&answer(&packet[..length], flags)).await.unwrap();
            };
            let (opened, ()) = tokio::join!(opener.open(caller, application, limit), far);
            let Ok(end) = opened else {
                assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
                assert_eq!(flags, Flags::RST | Flags::ACK);
                continue;
            };
            assert_eq!(flags, Flags::SYN | Flags::ACK);
            drop(end);
            // The ACK, and the reset of what was dropped.
            while packet[33] & Flags::RST == 0 {
                kernel.recv(&mut packet).await.unwrap();
            }
        }
        let silent = opener
            .open(caller, application, std::time::Duration::from_millis(20))
            .await;
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let six = opener.open("fd00::1".parse().unwrap(), application, limit).await;
        assert_eq!(six.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        while stats.snapshot().flows > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        error = capture.run(|_| ()) => panic!("the loop ended: {error}"),
        () = work => {}
    }
}
