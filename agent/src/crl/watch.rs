//! Follows the file: reads it again when it changed, or when the anchors did.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::watch;

use super::Crls;
use crate::certs::Credentials;

/// What tells one state of the file from another. Links are followed, so a swapped link (Kubernetes does so) is another file.
type Stamp = (u64, u64, u64, i64, i64);

/// The task that owns the lists.
#[derive(Debug)]
pub struct CrlFile {
    path: PathBuf,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    publish: watch::Sender<Arc<Crls>>,
    /// Of what was read last; none when it could not be.
    seen: Option<Stamp>,
}

impl CrlFile {
    /// Reads the file once, so that its lists hold from the first handshake on.
    pub fn open(
        path: PathBuf,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
    ) -> (Self, watch::Receiver<Arc<Crls>>) {
        let (publish, crls) = watch::channel(Arc::default());
        let mut file = Self {
            path,
            credentials,
            publish,
            seen: None,
        };
        file.read();
        (file, crls)
    }

    /// Runs until the agent stops.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            let anchors_changed = tokio::select! {
                _ = tick.tick() => false,
                changed = self.credentials.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
            };
            if anchors_changed || stamp(&self.path) != self.seen || self.seen.is_none() {
                let reading = tokio::task::spawn_blocking(move || {
                    self.read();
                    self
                });
                match reading.await {
                    Ok(file) => self = file,
                    Err(_) => return,
                }
            }
        }
    }

    fn read(&mut self) {
        // Before the bytes: what changes meanwhile is read again.
        self.seen = stamp(&self.path);
        let held = self.publish.borrow().clone();
        let next = match bytes(&self.path) {
            Ok(bytes) => held.next(&bytes, &self.signers()),
            Err(error) => held.with_problem(error),
        };
        if next == *held {
            return;
        }
        let path = self.path.display();
        for problem in next.problems.iter().filter(|problem| !held.problems.contains(problem)) {
            tracing::error!(target: "mesh_agent::crl", %path, %problem, "the CRL file is not used as it is; what was in force stays");
        }
        if next.problems.is_empty() {
            let revoked: usize = next.lists.iter().map(|list| list.len()).sum();
            tracing::info!(target: "mesh_agent::crl", %path, lists = next.lists.len(), revoked, "CRLs in force");
        }
        self.publish.send_replace(Arc::new(next));
    }

    /// Our anchors, and the intermediates between them and us.
    fn signers(&self) -> Vec<CertificateDer<'static>> {
        let Some(credentials) = self.credentials.borrow().clone() else {
            return Vec::new();
        };
        let roots = credentials.root_pems.iter();
        let roots = roots.flat_map(|pem| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .flatten()
                .collect::<Vec<_>>()
        });
        roots.chain(credentials.key.cert.iter().skip(1).cloned()).collect()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let path_text = path.display();
    let file = std::fs::metadata(path).map_err(|error| format!("reading {path_text} (tunnel.crl_file): {error}"))?;
    if file.len() > MAX_BYTES {
        return Err(format!(
            "{path_text} (tunnel.crl_file) has {} bytes, more than {MAX_BYTES}; is it a CRL?",
            file.len()
        ));
    }
    std::fs::read(path)
        .map_err(|error| format!("reading {path_text} (tunnel.crl_file): {error}; may user mesh-agent read it?"))
}

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Some 1.5 million certificates.
const MAX_BYTES: u64 = 64 << 20;
