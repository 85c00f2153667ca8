//! How a stream ends, in frames, and that one which is not read keeps no other waiting.

use std::time::Duration;

use mesh_core::world::Delta;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::bare::ClientTls;
use crate::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, WINDOW_UPDATE, Wire, connect};
use crate::mesh::{echo_server, run, target};
use crate::setting::{Setting, deny_web};

/// Stream 1 to an application that the test plays.
async fn open(setting: &Setting) -> (Wire<ClientTls>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = target(listener.local_addr().unwrap());
    let mut wire = setting.wire().await;
    wire.write(HEADERS, END_HEADERS, 1, &connect(&authority)).await.unwrap();
    wire.next(HEADERS).await;
    let (application, _) = listener.accept().await.unwrap();
    (wire, application)
}

#[test]
fn the_client_may_finish_first() {
    run(async || {
        let setting = Setting::new();
        let (mut wire, mut application) = open(&setting).await;
        wire.write(DATA, END_STREAM, 1, b"question").await.unwrap();
        let mut got = String::new();
        application.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "question");
        application.write_all(b"answer").await.unwrap();
        let data = wire.next(DATA).await;
        assert_eq!((data.payload.as_slice(), data.flags), (&b"answer"[..], 0));
        drop(application);
        let end = wire.next(DATA).await;
        assert_eq!((end.payload.as_slice(), end.flags), (&b""[..], END_STREAM));
    });
}

#[test]
fn the_application_may_finish_first() {
    run(async || {
        let setting = Setting::new();
        let (mut wire, mut application) = open(&setting).await;
        application.shutdown().await.unwrap();
        let end = wire.next(DATA).await;
        assert_eq!((end.payload.as_slice(), end.flags), (&b""[..], END_STREAM));
        wire.write(DATA, 0, 1, b"more").await.unwrap();
        let mut more = [0; 4];
        application.read_exact(&mut more).await.unwrap();
        wire.write(DATA, END_STREAM, 1, b"").await.unwrap();
        assert_eq!(application.read(&mut more).await.unwrap(), 0);
        let others = wire.round_trip().await;
        assert!(!others.iter().any(|frame| frame.kind == RST_STREAM), "{others:?}");
    });
}

#[test]
fn a_reset_of_the_application_is_connect_error() {
    run(async || {
        let setting = Setting::new();
        let (mut wire, application) = open(&setting).await;
        socket2::SockRef::from(&application)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(application);
        let reset = wire.next(RST_STREAM).await;
        assert_eq!((reset.stream, reset.number(0)), (1, 10), "CONNECT_ERROR (RFC 9113 7)");
    });
}

#[test]
fn a_reset_of_the_client_is_one_to_the_application() {
    run(async || {
        let setting = Setting::new();
        // PROTOCOL_ERROR, CANCEL, CONNECT_ERROR: none of them is an end of what was sent.
        for code in [1, 8, 10_u32] {
            let (mut wire, mut application) = open(&setting).await;
            wire.write(RST_STREAM, 0, 1, &code.to_be_bytes()).await.unwrap();
            let read = application.read(&mut [0]).await;
            assert_eq!(
                read.unwrap_err().kind(),
                std::io::ErrorKind::ConnectionReset,
                "code {code}"
            );
            wire.round_trip().await;
        }
        // A connection that breaks resets all that it carries.
        let (wire, mut application) = open(&setting).await;
        drop(wire);
        let read = application.read(&mut [0]).await;
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_change_of_policy_resets_with_a_code_of_its_own() {
    run(async || {
        let setting = Setting::new();
        let (mut wire, mut application) = open(&setting).await;
        setting.orders.change(Delta {
            policies: vec![deny_web()],
            ..Delta::default()
        });
        let reset = wire.next(RST_STREAM).await;
        assert_eq!(reset.payload, b"mesh");
        assert!(application.read(&mut [0]).await.is_err());
        // The connection is not the policy's business.
        wire.round_trip().await;
    });
}

#[test]
fn a_revocation_ends_the_connection() {
    run(async || {
        let setting = Setting::new();
        let (mut wire, mut application) = open(&setting).await;
        setting.orders.crls.send_replace(setting.ca.crls(&[&setting.web]));
        let goodbye = wire.next(GOAWAY).await;
        assert_eq!(goodbye.number(4), 8, "CANCEL");
        assert!(application.read(&mut [0]).await.is_err());
        assert!(wire.next_or_end(HEADERS).await.is_none());
    });
}

#[test]
fn a_stream_that_is_not_read_stops_at_its_window_and_starves_no_other() {
    run(async || {
        let setting = Setting::new();
        let echo = echo_server().await;
        let (mut wire, mut application) = open(&setting).await;
        wire.round_trip().await;
        // As long as there is room; the kernel's buffers take some, and then nobody gives any back.
        let (mut room, mut sent, mut quiet) = (4_u64 << 20, 0_u64, 0);
        while quiet < 50 {
            while room > 0 {
                let length = room.min(1 << 20);
                let bytes = vec![0; usize::try_from(length).unwrap()];
                wire.write(DATA, 0, 1, &bytes).await.unwrap();
                (room, sent, quiet) = (room - length, sent + length, 0);
            }
            let came = wire.round_trip().await;
            let given = came
                .iter()
                .filter(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 1);
            room = given.map(|frame| u64::from(frame.number(0))).sum();
            quiet += 1;
        }
        assert!(sent < 32 << 20, "{sent} bytes were taken for nobody");
        wire.write(HEADERS, END_HEADERS, 3, &connect(&echo)).await.unwrap();
        wire.next(HEADERS).await;
        wire.write(DATA, 0, 3, b"not starved").await.unwrap();
        let data = wire.next(DATA).await;
        assert_eq!((data.stream, data.payload.as_slice()), (3, &b"not starved"[..]));
        // Once it is read, it goes on.
        let mut buffer = vec![0; 1 << 20];
        let (more, _) = tokio::join!(wire.next(WINDOW_UPDATE), async {
            let mut left = sent;
            while left > 0 {
                left -= application.read(&mut buffer).await.unwrap() as u64;
            }
        });
        assert!(more.number(0) > 0);
    });
}
