//! Arbitrary bytes as the head of a CONNECT and of its answer: no panic, and what is accepted reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::connect::Request;
use mesh_core::h3::head::{decode_request, decode_response, encode_request, encode_response};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Request::Connect(head)) = decode_request(bytes) {
        assert_eq!(decode_request(&encode_request(&head)), Ok(Request::Connect(head)));
    }
    if let Ok(head) = decode_response(bytes) {
        assert_eq!(decode_response(&encode_response(&head)), Ok(head));
    }
});
