//! What our dialler makes of each answer and of each way in which a server ends a stream or a connection.

use bytes::Bytes;
use mesh_agent::copy::{Sink as _, Source as _};
use mesh_agent::failure::Failure;
use tokio::io::AsyncWriteExt as _;

use crate::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame};
use crate::mesh::{Stream, dial};
use crate::setting::{Dialling, dialling};

const AUTHORITY: &str = "10.9.9.9:8080";
const STATUS_200: [u8; 1] = [0x88];
/// Ours for a change of policy: the letters `mesh`.
const MESH_POLICY: u32 = u32::from_be_bytes(*b"mesh");

async fn dialled(dialling: &Dialling) -> Result<Stream, Failure> {
    dial(&dialling.tunnels, dialling.door.address(), &["orders"], AUTHORITY).await
}

#[test]
fn a_status_is_told_with_the_policy_or_reason_that_it_names() {
    dialling(async |dialling| {
        let server = async {
            let mut served = dialling.door.http2(&h2::server::Builder::new()).await;
            for (status, headers) in [
                (401, &[][..]),
                (401, &[("x-mesh-policy", "shop/a,shop/b")]),
                (503, &[]),
                (503, &[("x-mesh-reason", "refused")]),
                (400, &[]),
                (431, &[]),
                (302, &[("location", "https://10.9.9.9/")]),
            ] {
                served.next().await.unwrap().refuse(status, headers);
            }
            served
        };
        let client = async {
            for (text, retried) in [
                ("http status: 401 Unauthorized", false),
                ("http status: 401 Unauthorized (shop/a,shop/b)", false),
                ("http status: 503 Service Unavailable", true),
                ("http status: 503 Service Unavailable (refused)", true),
                ("http status: 400 Bad Request", false),
                ("http status: 431 Request Header Fields Too Large", false),
                ("http status: 302 Found", false),
            ] {
                let failure = dialled(&dialling).await.unwrap_err();
                assert_eq!((failure.to_string().as_str(), failure.is_retryable()), (text, retried));
            }
        };
        tokio::join!(client, server);
        assert_eq!(dialling.door.hellos().len(), 1, "one connection for all");
    });
}

#[test]
fn a_reset_instead_of_an_answer_may_be_tried_elsewhere() {
    dialling(async |dialling| {
        let server = async {
            let mut wire = dialling.door.wire().await;
            // PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, CONNECT_ERROR, and one that nobody knows.
            for code in [1, 7, 8, 10, 0xbad_u32] {
                let stream = wire.next(HEADERS).await.stream;
                wire.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await.unwrap();
            }
            wire
        };
        let client = async {
            for code in [1, 7, 8, 10, 0xbad_u64] {
                let failure = dialled(&dialling).await.unwrap_err();
                assert!(matches!(failure, Failure::PeerReset(got) if got == code), "{failure}");
                assert!(failure.is_retryable());
            }
        };
        tokio::join!(client, server);
    });
}

#[test]
fn a_reset_later_is_told_by_its_code() {
    dialling(async |dialling| {
        let server = async {
            let mut wire = dialling.door.wire().await;
            for code in [1, 8, 10, MESH_POLICY] {
                let stream = wire.next(HEADERS).await.stream;
                let mut answer = frame(HEADERS, END_HEADERS, stream, &STATUS_200);
                answer.extend(frame(DATA, 0, stream, b"some"));
                answer.extend(frame(RST_STREAM, 0, stream, &code.to_be_bytes()));
                wire.0.write_all(&answer).await.unwrap();
                wire.0.flush().await.unwrap();
            }
            wire
        };
        let client = async {
            for code in [1, 8, 10, MESH_POLICY] {
                let mut stream = dialled(&dialling).await.unwrap();
                let mut got = Vec::new();
                let end = loop {
                    match stream.source.recv().await {
                        Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                        Ok(None) => panic!("{code}: an end instead of a reset"),
                        Err(failure) => break failure,
                    }
                };
                assert_eq!(got, b"some", "{code}");
                match code {
                    MESH_POLICY => assert!(matches!(end, Failure::PolicyChangeRemote(None)), "{end}"),
                    _ => assert!(
                        matches!(end, Failure::PeerReset(got) if got == u64::from(code)),
                        "{end}"
                    ),
                }
                assert!(stream.sink.send(Bytes::from_static(b"x")).await.is_err(), "{code}");
            }
        };
        tokio::join!(client, server);
    });
}

/// A server that has said everything may take back its interest in our rest (RFC 9113 8.1): that is no reset.
#[test]
fn a_reset_without_an_error_after_the_end_is_an_end() {
    dialling(async |dialling| {
        let server = async {
            let mut wire = dialling.door.wire().await;
            let stream = wire.next(HEADERS).await.stream;
            let mut answer = frame(HEADERS, END_HEADERS, stream, &STATUS_200);
            answer.extend(frame(DATA, END_STREAM, stream, b"everything"));
            answer.extend(frame(RST_STREAM, 0, stream, &0_u32.to_be_bytes()));
            wire.0.write_all(&answer).await.unwrap();
            wire.0.flush().await.unwrap();
            wire
        };
        let (stream, _wire) = tokio::join!(dialled(&dialling), server);
        let mut stream = stream.unwrap();
        let mut got = Vec::new();
        while let Some(bytes) = stream.source.recv().await.unwrap() {
            got.extend_from_slice(&bytes);
        }
        assert_eq!(got, b"everything");
        stream.sink.finish().await.unwrap();
    });
}

#[test]
fn a_server_that_breaks_the_protocol_is_hung_up_on() {
    dialling(async |dialling| {
        let mut large = frame(DATA, 0, 1, b"");
        large[..3].copy_from_slice(&[0x10, 0, 1]);
        // More than any window, for which nobody waits.
        let flood = frame(DATA, 0, 1, &vec![0; 1 << 20]).repeat(17);
        let promise = frame(5, END_HEADERS, 1, &[0, 0, 0, 2]);
        for (what, bytes, kind, code) in [
            ("FRAME_SIZE_ERROR", large, GOAWAY, 6),
            ("FLOW_CONTROL_ERROR", flood, RST_STREAM, 3),
            ("a push", promise, GOAWAY, 1),
            ("DATA of no stream", frame(DATA, 0, 0, b"x"), GOAWAY, 1),
        ] {
            let server = async {
                let mut wire = dialling.door.wire().await;
                let before = wire.round_trip().await;
                let stream = match before.iter().find(|frame| frame.kind == HEADERS) {
                    Some(request) => request.stream,
                    None => wire.next(HEADERS).await.stream,
                };
                wire.write(HEADERS, END_HEADERS, stream, &STATUS_200).await.unwrap();
                let _ = wire.0.write_all(&bytes).await;
                let _ = wire.0.flush().await;
                wire
            };
            let (stream, mut wire) = tokio::join!(dialled(&dialling), server);
            let goodbye = wire.next(kind).await;
            assert_eq!(goodbye.number(if kind == GOAWAY { 4 } else { 0 }), code, "{what}");
            let mut stream = stream.unwrap();
            let end = loop {
                match stream.source.recv().await {
                    Ok(Some(_)) => {}
                    end => break end,
                }
            };
            assert!(
                matches!(
                    end,
                    Err(Failure::Protocol(_) | Failure::TunnelLost(_) | Failure::PeerReset(_))
                ),
                "{what}: {end:?}"
            );
        }
    });
}

#[test]
fn what_speaks_no_http2_is_told_so() {
    dialling(async |dialling| {
        let server = async {
            let mut stream = dialling.door.tls().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            stream.flush().await.unwrap();
            stream
        };
        let (dialled, _stream) = tokio::join!(dialled(&dialling), server);
        let failure = dialled.unwrap_err();
        assert!(failure.to_string().starts_with("http handshake failed"), "{failure}");
        assert!(failure.is_retryable());
    });
}

#[test]
fn whoever_is_not_expected_hears_not_one_byte_of_http() {
    dialling(async |dialling| {
        let address = dialling.door.address();
        for names in [&["other"][..], &[]] {
            let client = dial(&dialling.tunnels, address, names, AUTHORITY);
            let (dialled, accepted) = tokio::join!(client, dialling.door.tls());
            let failure = dialled.unwrap_err();
            assert!(
                failure.to_string().starts_with("tls error: ") && failure.to_string().contains("identity mismatch"),
                "{failure}"
            );
            assert!(accepted.is_err(), "the server's handshake succeeded");
        }
    });
}
