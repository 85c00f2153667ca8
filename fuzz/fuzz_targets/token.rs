//! Arbitrary text as a token: no panic, and what is accepted prints and reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::token;

fuzz_target!(|text: &str| {
    if let Ok(accepted) = token::decode(text) {
        assert_eq!(token::decode(&token::encode(&accepted)), Ok(accepted));
    }
});
