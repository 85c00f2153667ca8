//! What our dialler says of the connection itself: ClientHello, SETTINGS, windows, PING, and a CONNECT as frames.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mesh_agent::copy::{Sink as _, Source as _};
use mesh_agent::failure::Failure;
use rustls::{CipherSuite, NamedGroup};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::door::{Door, ServerTls};
use crate::frames::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire};
use crate::mesh::{Stream, dial};
use crate::setting::{Dialling, dialling};
use crate::virtual_time::Held;

const AUTHORITY: &str = "10.9.9.9:8080";
/// `:status: 200`, an entry of the static table (RFC 7541 appendix A).
const STATUS_200: [u8; 1] = [0x88];

/// A stream whose other end is read and written by hand.
async fn open(dialling: &Dialling) -> (Stream, Wire<ServerTls>, crate::frames::Frame) {
    let answer = async {
        let mut wire = dialling.door.wire().await;
        let request = wire.next(HEADERS).await;
        wire.write(HEADERS, END_HEADERS, request.stream, &STATUS_200)
            .await
            .unwrap();
        (wire, request)
    };
    let dialled = dial(&dialling.tunnels, dialling.door.address(), &["orders"], AUTHORITY);
    let (stream, (wire, request)) = tokio::join!(dialled, answer);
    (stream.unwrap(), wire, request)
}

#[test]
fn the_client_hello_offers_what_ztunnel_offers() {
    dialling(async |dialling| {
        open(&dialling).await;
        let hellos = dialling.door.hellos();
        assert_eq!(hellos.len(), 1, "one connection");
        assert_eq!(hellos[0].server_name, None);
        assert_eq!(hellos[0].alpn, [b"h2"]);
        let mut suites = hellos[0].suites.clone();
        suites.sort_by_key(|suite| u16::from(*suite));
        assert_eq!(
            suites,
            [
                CipherSuite::TLS13_AES_128_GCM_SHA256,
                CipherSuite::TLS13_AES_256_GCM_SHA384
            ]
        );
        assert_eq!(hellos[0].groups[0], NamedGroup::X25519MLKEM768);
    });
}

#[test]
fn settings_and_windows_are_ztunnels() {
    dialling(async |dialling| {
        let server = async {
            let mut wire = dialling.door.wire().await;
            let settings = wire.read().await.unwrap();
            assert_eq!(settings.kind, SETTINGS);
            let expected = BTreeMap::from([
                (2, 0),        // ENABLE_PUSH
                (4, 4 << 20),  // INITIAL_WINDOW_SIZE
                (5, 1 << 20),  // MAX_FRAME_SIZE
                (6, 16 << 10), // MAX_HEADER_LIST_SIZE
            ]);
            assert_eq!(settings.settings(), expected);
            let window = wire.next(WINDOW_UPDATE).await;
            assert_eq!((window.stream, window.number(0)), (0, (16 << 20) - 65_535));
        };
        let dialled = dial(&dialling.tunnels, dialling.door.address(), &["orders"], AUTHORITY);
        tokio::select! {
            _ = dialled => panic!("nobody answered"),
            () = server => {}
        }
    });
}

#[test]
fn a_stream_as_frames() {
    dialling(async |dialling| {
        let (mut stream, mut wire, request) = open(&dialling).await;
        assert_eq!(
            (request.stream, request.flags),
            (1, END_HEADERS),
            "the head does not end the stream"
        );
        stream.sink.send(Bytes::from_static(b"question")).await.unwrap();
        let data = wire.next(DATA).await;
        assert_eq!((data.payload.as_slice(), data.flags), (&b"question"[..], 0));
        stream.sink.finish().await.unwrap();
        assert_eq!(wire.next(DATA).await.flags, END_STREAM);
        // Ours is over, and the other half is not.
        wire.write(DATA, 0, 1, b"ans").await.unwrap();
        wire.write(DATA, END_STREAM, 1, b"wer").await.unwrap();
        let mut got = Vec::new();
        while let Some(bytes) = stream.source.recv().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
        assert_eq!(got, b"answer");
        drop(stream);
        let others = wire.round_trip().await;
        assert!(!others.iter().any(|frame| frame.kind == RST_STREAM), "{others:?}");
    });
}

#[test]
fn a_stream_that_is_given_up_is_cancelled() {
    dialling(async |dialling| {
        let (stream, mut wire, _) = open(&dialling).await;
        drop(stream);
        assert_eq!(wire.next(RST_STREAM).await.number(0), 8, "CANCEL");
        // Another one on the same connection.
        let dialled = dial(&dialling.tunnels, dialling.door.address(), &["orders"], AUTHORITY);
        let answered = async {
            let request = wire.next(HEADERS).await;
            assert_eq!(request.stream, 3);
            wire.write(HEADERS, END_HEADERS, 3, &STATUS_200).await.unwrap();
        };
        tokio::join!(dialled, answered).0.unwrap();
    });
}

/// Nobody answered in time: the server is told, or it would serve for nobody.
#[test]
fn a_request_that_is_given_up_is_cancelled() {
    dialling(async |dialling| {
        let dialled = dial(&dialling.tunnels, dialling.door.address(), &["orders"], AUTHORITY);
        let asked = async {
            let mut wire = dialling.door.wire().await;
            wire.next(HEADERS).await;
            wire
        };
        let mut wire = tokio::select! {
            _ = dialled => panic!("nobody answered"),
            wire = asked => wire,
        };
        let reset = wire.next(RST_STREAM).await;
        assert_eq!((reset.stream, reset.number(0)), (1, 8), "CANCEL");
    });
}

/// What a reader takes is given back to both windows; what it does not take is not.
#[test]
fn windows_follow_the_reader() {
    dialling(async |dialling| {
        let (mut stream, mut wire, _) = open(&dialling).await;
        wire.round_trip().await;
        for _ in 0..4 {
            wire.write(DATA, 0, 1, &vec![7; 1 << 20]).await.unwrap();
        }
        let before = wire.round_trip().await;
        assert!(
            !before
                .iter()
                .any(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 1),
            "{before:?}"
        );
        let mut got = 0;
        while got < 4 << 20 {
            got += stream.source.recv().await.unwrap().unwrap().len();
        }
        // The last piece counts when the next is asked for.
        assert!(stream.source.recv_ready().is_none());
        let mut given_back = 0;
        while given_back < 2 << 20 {
            let update = wire.next(WINDOW_UPDATE).await;
            given_back += if update.stream == 1 { update.number(0) } else { 0 };
        }
    });
}

#[test]
fn pings_are_answered_and_sent() {
    dialling(async |dialling| {
        let (mut stream, mut wire, _) = open(&dialling).await;
        wire.round_trip().await;
        let time = Held::new();
        time.pass(Duration::from_millis(9_900)).await;
        let early = wire.round_trip().await;
        assert!(!early.iter().any(|frame| frame.kind == PING), "{early:?}");
        time.pass(Duration::from_millis(200)).await;
        let ping = wire.due_ping().await;
        wire.write(PING, ACK, 0, &ping.payload).await.unwrap();
        wire.round_trip().await;
        time.pass(Duration::from_millis(10_100)).await;
        wire.due_ping().await;
        // This one is not answered.
        time.pass(Duration::from_millis(20_100)).await;
        drop(time);
        let lost = stream.source.recv().await.unwrap_err();
        assert!(matches!(lost, Failure::TunnelLost(_)), "{lost}");
        assert!(wire.next_or_end(PING).await.is_none());
    });
}

#[test]
fn a_server_of_tls_1_2_is_refused() {
    dialling(async |dialling| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 5];
            stream.read_exact(&mut head).await.unwrap();
            let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            stream.read_exact(&mut hello).await.unwrap();
            // A ServerHello without supported_versions: version 1.2, a random, no session, ECDHE-ECDSA with AES-128-GCM.
            let mut answer = vec![22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3];
            answer.extend_from_slice(&[7; 32]);
            answer.extend_from_slice(&[0, 0xc0, 0x2b, 0]);
            stream.write_all(&answer).await.unwrap();
            let mut alert = Vec::new();
            stream.read_to_end(&mut alert).await.unwrap();
            // What ends it is an alert, after a change_cipher_spec for middleboxes perhaps (RFC 8446 D.4).
            let at = alert.len() - 7;
            assert_eq!(alert[at..at + 5], [21, 3, 3, 0, 2], "{alert:?}");
            assert_eq!(alert[at + 5], 2, "fatal");
        };
        let address = listener.local_addr().unwrap();
        let dialled = dial(&dialling.tunnels, address, &["orders"], AUTHORITY);
        let (dialled, ()) = tokio::join!(dialled, server);
        let refused = dialled.unwrap_err();
        assert!(matches!(refused, Failure::Tls(_)), "{refused}");
    });
}

#[test]
fn a_server_that_agrees_on_no_protocol_is_refused() {
    dialling(async |mut dialling| {
        dialling.door = Door::with_alpn(&dialling.ca.member("orders"), &[]).await;
        let dialled = dial(&dialling.tunnels, dialling.door.address(), &["orders"], AUTHORITY);
        let (dialled, _) = tokio::join!(dialled, dialling.door.tls());
        let refused = dialled.unwrap_err();
        assert!(refused.to_string().contains("does not speak HTTP/2"), "{refused}");
    });
}
