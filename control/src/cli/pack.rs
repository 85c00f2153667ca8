//! `meshctl token pack`: a bundle of istioctl as one token.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::time::SystemTime;

use mesh_core::istio::{Files, MAX_FILE, pack};

use super::Failure;
use super::arguments::TokenPack;
use super::output::{note, say};

pub(super) fn run(command: &TokenPack) -> Result<(), Failure> {
    let directory = &command.istio_bundle;
    let read = |name| {
        let path = directory.join(name);
        let failed = |error| Failure::new(1, format!("reading {}: {error}", path.display()));
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && directory.is_dir() => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let mut text = String::new();
        // One byte more than may be, so that too long a file is seen to be so.
        file.take(MAX_FILE as u64 + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Ok::<_, Failure>(Some(text))
    };
    let files = Files::gather(read)?;
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let token = pack(&files, command.istiod_address.as_deref(), now).map_err(|e| Failure::new(1, e.to_string()))?;
    note("the token holds the bundle's istio-token: keep it secret; it is good for as long as that is");
    say(&token)
}
