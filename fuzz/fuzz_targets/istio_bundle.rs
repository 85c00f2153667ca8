//! Arbitrary text as the five files of a bundle: no panic, and what is read packs into a token that reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::istio::{Files, check, claims, read};
use mesh_core::token::{self, BootstrapToken};

fuzz_target!(|texts: (&str, &str, &str, &str, &str)| {
    let text = |text: &str| Some(text.to_owned());
    let files = Files {
        cluster_env: text(texts.0),
        mesh_yaml: text(texts.1),
        root_cert: text(texts.2),
        istio_token: text(texts.3),
        hosts: text(texts.4),
    };
    let _ = claims(texts.3);
    if let Ok((addresses, bundle)) = read(&files, None) {
        let _ = check(&bundle, 0);
        let packed = BootstrapToken {
            addresses,
            istio: Some(bundle),
            ..BootstrapToken::default()
        };
        let text = token::encode(&packed);
        if text.len() <= token::MAX_LENGTH {
            assert_eq!(token::decode(&text), Ok(packed));
        }
    }
});
