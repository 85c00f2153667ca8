//! The state directory: identity, certificates and the last good world. Every file is replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::join::Membership;

/// The directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State(PathBuf);

impl State {
    /// Nothing is touched yet.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Reads a file; `None` when there is none.
    pub fn read(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match fs::read(self.path(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", self.path(name).display())),
        }
    }

    /// Replaces a file, readable by its owner alone; after a crash either the old or the new one is there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.try_write(name, bytes).with_context(|| {
            format!(
                "writing {}; is the disk full, or the directory not writable for this user?",
                self.path(name).display()
            )
        })
    }

    fn try_write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let fresh = self.path(&format!(".{name}.{}.new", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written.and_then(|()| fs::rename(&fresh, self.path(name))) {
            let _ = fs::remove_file(&fresh);
            return Err(error);
        }
        File::open(&self.0)?.sync_all()
    }

    /// Removes files; those that are not there are no error.
    pub fn remove(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            match fs::remove_file(self.path(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", self.path(name).display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Who we joined as; `None` before a join.
    pub fn membership(&self) -> anyhow::Result<Option<Membership>> {
        let Some(bytes) = self.read(MEMBERSHIP)? else {
            return Ok(None);
        };
        let path = self.path(MEMBERSHIP);
        serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged; join again", path.display()))
    }

    /// Since when an operator drains this machine, in seconds since the epoch.
    pub fn draining(&self) -> anyhow::Result<Option<u64>> {
        let found = self.read(DRAINING)?;
        // A file that says nothing readable still says that it drains.
        Ok(found.map(|bytes| String::from_utf8_lossy(&bytes).trim().parse().unwrap_or(0)))
    }

    /// Notes it, or that it is over.
    pub fn set_draining(&self, since: Option<u64>) -> anyhow::Result<()> {
        match since {
            Some(since) => self.write(DRAINING, since.to_string().as_bytes()),
            None => self.remove(&[DRAINING]),
        }
    }

    /// Forgets the membership, and everything that belongs to it. The marker goes first.
    pub fn forget(&self) -> anyhow::Result<()> {
        self.remove(&[MEMBERSHIP, KEY, CERTIFICATE, ROOTS, HOST_KEY, WORLD, DRAINING])
    }
}

/// Written last: with it the machine is joined.
pub const MEMBERSHIP: &str = "membership.json";
/// The long-lived key of this machine.
pub const HOST_KEY: &str = "host.key";
/// The current leaf's key, and its chain.
pub const KEY: &str = "key.pem";
pub const CERTIFICATE: &str = "cert.pem";
/// Trust anchors.
pub const ROOTS: &str = "roots.pem";
/// There while an operator drains this machine: since when, in seconds since the epoch.
pub const DRAINING: &str = "draining";
/// The last good world.
pub const WORLD: &str = "world.bin";
