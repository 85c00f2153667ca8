//! The CA's files: keys are written once, atomically and fsynced, readable by their owner alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::CaError;
use crate::config::Settings;

/// Where the key of this anchor is kept.
pub(super) fn path(settings: &Settings, fingerprint: &str) -> PathBuf {
    settings.data_dir.join("ca").join(format!("{fingerprint}.key"))
}

/// Writes a key: to a temporary file, fsync, rename, fsync of the directory.
pub(super) fn write(path: &Path, pem: &[u8]) -> Result<(), CaError> {
    let failed = |e| CaError::File(path.to_owned(), e);
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)?;
    let temporary = path.with_extension("tmp");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(pem).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
}

/// Reads a PKCS#8 key.
pub(super) fn read(path: &Path) -> Result<KeyPair, CaError> {
    let pem = fs::read_to_string(path).map_err(|e| CaError::File(path.to_owned(), e))?;
    KeyPair::from_pem(&pem).map_err(|e| {
        CaError::Invalid(format!(
            "{}: not a usable private key (PKCS#8 PEM): {e}",
            path.display()
        ))
    })
}

/// Reads all certificates of a PEM file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let pem = fs::read(path).map_err(|e| CaError::File(path.to_owned(), e))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(CaError::Invalid(format!("{}: no certificate in it", path.display()))),
        Err(e) => Err(CaError::Invalid(format!("{}: {e}", path.display()))),
    }
}
