//! Arbitrary bytes, in arbitrary chunks, as a request and as a control stream: no panic, and DATA never grows.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use mesh_core::h3::frame::{Decoder, Frame, Stream};

fuzz_target!(|input: (u8, &[u8])| {
    let (chunk, bytes) = input;
    for stream in [Stream::Request, Stream::Control] {
        let mut decoder = Decoder::new(stream);
        let mut data = 0;
        'stream: for part in bytes.chunks(usize::from(chunk).max(1)) {
            let mut part = Bytes::copy_from_slice(part);
            loop {
                match decoder.next(&mut part) {
                    Ok(Some(Frame::Data(payload))) => data += payload.len(),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
        }
        assert!(data <= bytes.len());
    }
});
