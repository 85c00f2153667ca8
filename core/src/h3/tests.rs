use bytes::Bytes;
use proptest::prelude::*;

use super::frame::{self, Decoder, Frame, Settings, Stream};
use super::head;
use super::*;
use crate::connect::{ConnectHead, Request, ResponseHead};

fn decode_all(stream: Stream, bytes: &[u8], chunk: usize) -> Result<Vec<Frame>, H3Error> {
    let mut decoder = Decoder::new(stream);
    let mut frames: Vec<Frame> = Vec::new();
    for part in bytes.chunks(chunk.max(1)) {
        let mut part = Bytes::copy_from_slice(part);
        while let Some(frame) = decoder.next(&mut part)? {
            match (frames.last_mut(), frame) {
                (Some(Frame::Data(so_far)), Frame::Data(more)) => *so_far = [so_far.as_ref(), &more].concat().into(),
                (_, frame) => frames.push(frame),
            }
        }
        assert!(part.is_empty());
    }
    Ok(frames)
}

fn connect() -> ConnectHead {
    ConnectHead {
        authority: "10.0.0.1:8080".into(),
        baggage: Some("k8s.namespace.name=shop".into()),
        forwarded: Some("for=\"10.0.0.2:4000\"".into()),
        traceparent: None,
        forwarded_network: Some("far".into()),
        udp_by: None,
    }
}

#[test]
fn heads_read_back() {
    assert_eq!(
        head::decode_request(&head::encode_request(&connect())),
        Ok(Request::Connect(connect()))
    );
    let response = ResponseHead {
        status: 401,
        policy: Some("shop/no-web".into()),
        reason: None,
        baggage: None,
        alt_svc: Some("h3=\":15008\"".into()),
        capsule_protocol: Some("?1".into()),
    };
    assert_eq!(head::decode_response(&head::encode_response(&response)), Ok(response));
    // 200 is one byte behind the two of the prefix: indexed.
    assert_eq!(
        head::encode_response(&ResponseHead {
            status: 200,
            ..Default::default()
        }),
        [0, 0, 0xd9]
    );
}

#[test]
fn a_header_of_several_lines_is_one_list() {
    let section = qpack::encode([
        (":method", "CONNECT"),
        (":authority", "10.0.0.1:80"),
        ("baggage", "service.name=web"),
        ("other", "x"),
        ("baggage", "cloud.region=north"),
    ]);
    let Ok(Request::Connect(head)) = head::decode_request(&section) else {
        panic!("refused");
    };
    assert_eq!(head.baggage.as_deref(), Some("service.name=web,cloud.region=north"));
}

#[test]
fn malformed_requests() {
    let section = |fields: &[(&str, &str)]| head::decode_request(&qpack::encode(fields.iter().copied()));
    let (method, authority) = ((":method", "CONNECT"), (":authority", "10.0.0.1:80"));
    assert_eq!(section(&[method]), Err(H3Error::Message));
    assert_eq!(
        section(&[method, authority, (":scheme", "https")]),
        Err(H3Error::Message)
    );
    assert_eq!(section(&[method, authority, (":path", "/")]), Err(H3Error::Message));
    assert_eq!(section(&[method, method, authority]), Err(H3Error::Message));
    assert_eq!(section(&[method, ("a", "b"), authority]), Err(H3Error::Message));
    assert_eq!(section(&[method, authority, ("Upper", "b")]), Err(H3Error::Message));
    assert_eq!(section(&[method, authority, ("a", "b\n")]), Err(H3Error::Message));
    assert_eq!(
        section(&[method, authority, ("connection", "close")]),
        Err(H3Error::Message)
    );
    assert_eq!(section(&[method, authority, (":unknown", "b")]), Err(H3Error::Message));
    assert_eq!(
        section(&[(":method", "GET"), (":path", "/"), (":scheme", "https")]),
        Ok(Request::Other)
    );
    let long = "x".repeat(MAX_FIELD_SECTION);
    assert_eq!(section(&[method, authority, ("a", &long)]), Err(H3Error::ExcessiveLoad));
    // A reference into a dynamic table that does not exist.
    assert_eq!(head::decode_request(&[0, 0, 0x80]), Err(H3Error::QpackDecompression));
    assert_eq!(head::decode_request(&[1, 0]), Err(H3Error::QpackDecompression));
}

#[test]
fn a_connect_udp_names_its_target_in_the_path() {
    let head = ConnectHead {
        authority: "[fd00::1]:53".into(),
        udp_by: Some("10.0.0.1:15008".into()),
        ..connect()
    };
    let section = head::encode_request(&head);
    assert_eq!(head::decode_request(&section), Ok(Request::Connect(head)));
    let fields = qpack::decode(&section).unwrap();
    let value = |name: &str| {
        fields
            .iter()
            .find(|field| field.name == name)
            .map(|field| &*field.value)
    };
    for (name, expected) in [
        (":protocol", "connect-udp"),
        (":scheme", "https"),
        (":authority", "10.0.0.1:15008"),
        (":path", "/.well-known/masque/udp/fd00%3A%3A1/53/"),
        ("capsule-protocol", "?1"),
    ] {
        assert_eq!(value(name), Some(expected), "{name}");
    }
}

#[test]
fn an_extended_connect_is_whole_or_malformed() {
    let all = [
        (":method", "CONNECT"),
        (":protocol", "connect-udp"),
        (":scheme", "https"),
        (":authority", "peer"),
        (":path", "/.well-known/masque/udp/10.0.0.1/53/"),
    ];
    let with = |name: &str, value: Option<&'static str>| {
        let fields = all.iter().filter_map(|field| match value {
            _ if field.0 != name => Some(*field),
            Some(value) => Some((field.0, value)),
            None => None,
        });
        head::decode_request(&qpack::encode(fields))
    };
    assert!(matches!(with("", None), Ok(Request::Connect(_))));
    for name in [":scheme", ":authority", ":path"] {
        assert_eq!(with(name, None), Err(H3Error::Message), "without {name}");
    }
    assert_eq!(with(":scheme", Some("http")), Err(H3Error::Message));
    assert_eq!(with(":authority", Some("")), Err(H3Error::Message));
    assert_eq!(with(":path", Some("/")), Ok(Request::Other));
    assert_eq!(with(":protocol", Some("websocket")), Ok(Request::Other));
    assert_eq!(
        with(":protocol", None),
        Err(H3Error::Message),
        "a plain CONNECT has no path"
    );
}

#[test]
fn huffman_strings_are_read() {
    // RFC 7541 C.4.1: "www.example.com".
    let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    assert_eq!(huffman::decode(&coded, 100).as_deref(), Some(&b"www.example.com"[..]));
    assert_eq!(huffman::decode(&coded, 14), None);
    // Padding of zeros, and of a whole byte.
    assert_eq!(huffman::decode(&[0xf1, 0xe0], 100), None);
    assert_eq!(huffman::decode(&[0xff], 100), None);
    assert_eq!(huffman::decode(&[0xff; 4], 100), None);
}

#[test]
fn control_streams() {
    let preface = frame::control_preface();
    assert_eq!(preface[0], 0);
    let settings = Settings {
        max_field_section_size: Some(MAX_FIELD_SECTION as u64),
        enable_connect_protocol: true,
        h3_datagram: true,
    };
    assert!(settings.takes_udp() && !Settings::default().takes_udp());
    // A frame of the same type with a payload is somebody else's, and skipped as all that are not known.
    let foreign = [&frame::lossy()[..8], &[2, 0, 0]].concat();
    let bytes = [&preface[1..], &frame::goaway(8), &foreign, &frame::lossy()].concat();
    for chunk in [1, 3, 100] {
        let frames = decode_all(Stream::Control, &bytes, chunk);
        let expected = vec![Frame::Settings(settings), Frame::GoAway(8), Frame::Lossy];
        assert_eq!(frames, Ok(expected));
    }
    assert_eq!(
        decode_all(Stream::Control, &frame::goaway(8), 9),
        Err(H3Error::MissingSettings)
    );
    assert_eq!(
        decode_all(Stream::Control, &[4, 0, 4, 0], 9),
        Err(H3Error::FrameUnexpected)
    );
    assert_eq!(
        decode_all(Stream::Control, &[4, 0, 0, 0], 9),
        Err(H3Error::FrameUnexpected)
    );
    assert_eq!(
        decode_all(Stream::Control, &[4, 4, 6, 1, 6, 1], 9),
        Err(H3Error::Settings)
    );
    assert_eq!(decode_all(Stream::Control, &[4, 2, 2, 1], 9), Err(H3Error::Settings));
    assert_eq!(decode_all(Stream::Request, &[4, 0], 9), Err(H3Error::FrameUnexpected));
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..5), chunk in 1usize..50, unknown in 0x21u64..0x4000) {
        let mut bytes = frame::headers(&head::encode_request(&connect()));
        for payload in &payloads {
            // Frames of a kind that nobody knows are skipped.
            write_varint(unknown, &mut bytes);
            write_varint(3, &mut bytes);
            bytes.extend_from_slice(b"???");
            bytes.extend_from_slice(&frame::data_head(payload.len()));
            bytes.extend_from_slice(payload);
        }
        let frames = decode_all(Stream::Request, &bytes, chunk).unwrap();
        prop_assert_eq!(frames.len(), 2);
        prop_assert_eq!(&frames[1], &Frame::Data(payloads.concat().into()));
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), chunk in 1usize..20) {
        for stream in [Stream::Request, Stream::Control] {
            let _ = decode_all(stream, &bytes, chunk);
        }
        let _ = head::decode_request(&bytes);
        let _ = head::decode_response(&bytes);
    }

    #[test]
    fn integers_read_back(value in 0u64..1 << 62) {
        let mut bytes = Vec::new();
        write_varint(value, &mut bytes);
        prop_assert_eq!(read_varint(&bytes), Some((value, bytes.len())));
        prop_assert_eq!(read_varint(&bytes[..bytes.len() - 1]), None);
    }
}
