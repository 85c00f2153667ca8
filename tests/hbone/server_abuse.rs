//! What a client that does too much gets to hear.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::bare::{self, ask, request};
use crate::frames::{CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, RST_STREAM, SETTINGS, connect, fields, frame};
use crate::mesh::{echo_server, run, target};
use crate::setting::Setting;
use crate::virtual_time::Held;

/// Codes of RFC 9113 section 7.
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// CVE-2023-44487: streams that are taken back at once cost the client nothing, and would cost us everything.
#[test]
fn a_flood_of_resets_ends_the_connection() {
    run(async || {
        let setting = Setting::new();
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        let mut flood = Vec::new();
        for stream in (1..1000).step_by(2) {
            flood.extend(frame(HEADERS, END_HEADERS, stream, &connect("10.9.9.9:80")));
            flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        let _ = wire.0.write_all(&flood).await;
        let _ = wire.0.flush().await;
        let goodbye = wire.next(GOAWAY).await;
        assert_eq!(goodbye.number(4), ENHANCE_YOUR_CALM);
        assert!(wire.next_or_end(HEADERS).await.is_none());
    });
}

#[test]
fn a_field_section_has_64_kibibytes_at_most() {
    run(async || {
        let setting = Setting::new();
        let long = "x".repeat(70 << 10);
        for (length, status) in [(60 << 10, 503), (70 << 10, 431)] {
            let answer = setting.ask("10.9.9.9:15008", &[("baggage", &long[..length])]).await;
            assert_eq!(answer.status, status, "{length}");
        }
    });
}

/// CVE-2024-28182 and its kind: a field section without an end.
#[test]
fn a_flood_of_continuations_ends_the_connection() {
    run(async || {
        let setting = Setting::new();
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        let mut flood = frame(HEADERS, 0, 1, &connect("10.9.9.9:80"));
        for _ in 0..1000 {
            flood.extend(frame(CONTINUATION, 0, 1, &fields(&[("a", "b")])));
        }
        let _ = wire.0.write_all(&flood).await;
        let _ = wire.0.flush().await;
        assert_eq!(wire.next(GOAWAY).await.number(4), ENHANCE_YOUR_CALM);
        assert!(wire.next_or_end(HEADERS).await.is_none());
    });
}

#[test]
fn more_streams_than_were_offered_are_refused() {
    run(async || {
        let setting = Setting::new();
        let application = echo_server().await;
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        for stream in (1..400).step_by(2) {
            wire.write(HEADERS, END_HEADERS, stream, &connect(&application))
                .await
                .unwrap();
        }
        for _ in 0..200 {
            wire.next(HEADERS).await;
        }
        wire.write(HEADERS, END_HEADERS, 401, &connect(&application))
            .await
            .unwrap();
        let refused = wire.next(RST_STREAM).await;
        assert_eq!((refused.stream, refused.number(0)), (401, REFUSED_STREAM));
        // One that ends makes room.
        wire.write(RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await.unwrap();
        wire.round_trip().await;
        wire.write(HEADERS, END_HEADERS, 403, &connect(&application))
            .await
            .unwrap();
        assert_eq!(wire.next(HEADERS).await.stream, 403);
    });
}

#[test]
fn more_connects_than_a_peer_may_make_are_refused() {
    run(async || {
        let setting = Setting::with(|tunnel| tunnel.max_connects_per_second = 2);
        let mut wire = setting.wire().await;
        let time = Held::new();
        wire.round_trip().await;
        for stream in (1..40).step_by(2) {
            wire.write(HEADERS, END_HEADERS, stream, &connect("10.9.9.9:15008"))
                .await
                .unwrap();
        }
        let refused = wire.next(RST_STREAM).await;
        assert_eq!(refused.number(0), REFUSED_STREAM);
        assert!(refused.stream >= 9, "a burst of twice the rate is served");
        drop(time);
        // Nor does another connection help.
        let other = ask(&setting.client().await, request("10.9.9.9:15008", &[])).await;
        assert_eq!(
            other.err().and_then(|error| error.reason()),
            Some(h2::Reason::REFUSED_STREAM)
        );
    });
}

#[test]
fn a_peer_has_so_many_connections_and_not_one_more() {
    run(async || {
        let setting = Setting::with(|tunnel| tunnel.max_tunnels_per_peer = 2);
        let (mut first, mut second) = (setting.wire().await, setting.wire().await);
        first.round_trip().await;
        second.round_trip().await;
        let mut third = setting.wire().await;
        assert!(third.next_or_end(HEADERS).await.is_none());
        // Somebody else is not concerned.
        let other = setting.ca.member("other");
        bare::wire(setting.peer, &other).await.round_trip().await;
        drop(second);
        // When its place is free is up to the scheduler.
        loop {
            let mut again = setting.wire().await;
            again.write(SETTINGS, 0, 0, &[]).await.unwrap();
            if again.next_or_end(SETTINGS).await.is_some() && again.next_or_end(SETTINGS).await.is_some() {
                break;
            }
        }
        first.round_trip().await;
    });
}

#[test]
fn what_breaks_the_rules_ends_the_connection() {
    run(async || {
        let setting = Setting::new();
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        // The head of a frame that is larger than we said.
        let mut large = frame(DATA, 0, 1, b"");
        large[..3].copy_from_slice(&[0x10, 0, 1]);
        wire.0.write_all(&large).await.unwrap();
        assert_eq!(wire.next(GOAWAY).await.number(4), FRAME_SIZE_ERROR);

        // More than a stream's window, to an application that reads none of it.
        let unread = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = target(unread.local_addr().unwrap());
        let mut wire = setting.wire().await;
        wire.round_trip().await;
        wire.write(HEADERS, END_HEADERS, 1, &connect(&application))
            .await
            .unwrap();
        wire.next(HEADERS).await;
        let mut flood = Vec::new();
        for _ in 0..32 {
            flood.extend(frame(DATA, 0, 1, &vec![0; 1 << 20]));
        }
        let _ = wire.0.write_all(&flood).await;
        let refused = wire.next(RST_STREAM).await;
        assert_eq!(refused.number(0), FLOW_CONTROL_ERROR);

        // Something else than HTTP/2.
        let mut stream = bare::connect(setting.peer, bare::member_tls(&setting.web))
            .await
            .unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
            .await
            .unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.windows(4).any(|bytes| bytes == b"HTTP"), "{rest:?}");
    });
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    run(async || {
        let setting = Setting::new();
        let mut silent = TcpStream::connect(setting.peer).await.unwrap();
        let mut secured = bare::connect(setting.peer, bare::member_tls(&setting.web))
            .await
            .unwrap();
        let mut served = setting.wire().await;
        served.round_trip().await;
        let time = Held::new();
        time.pass(Duration::from_millis(10_100)).await;
        // Neither one without TLS, nor one without a preface.
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
        let _ = secured.read_to_end(&mut Vec::new()).await;
        served.round_trip().await;
    });
}
