//! Arbitrary bytes as capsules in arbitrary pieces, as an HTTP datagram, and as the path of a CONNECT-UDP: no panic, nothing
//! grows, and what is accepted reads back as the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use mesh_core::h3::datagram::{Capsules, decode, encode};
use mesh_core::h3::udp_path;

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let mut capsules = Capsules::default();
    let mut carried = 0;
    'stream: for piece in bytes.chunks(usize::from(size).max(1)) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            match capsules.next(&mut piece) {
                Ok(Some(payload)) => carried += payload.len(),
                Ok(None) => break,
                Err(_) => break 'stream,
            }
        }
    }
    assert!(carried <= bytes.len());
    if let Ok((stream, Some(payload))) = decode(Bytes::copy_from_slice(bytes)) {
        assert_eq!(decode(encode(stream, &payload)), Ok((stream, Some(payload))));
    }
    if let Some(authority) = std::str::from_utf8(bytes).ok().and_then(udp_path::decode) {
        let path = udp_path::encode(&authority).expect("a path for what a path named");
        assert_eq!(udp_path::decode(&path).as_ref(), Some(&authority));
    }
});
