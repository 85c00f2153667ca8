//! A command as a probe: run in a sandbox of its own process ([`super::sandbox`]), bounded in time and output.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;

/// Runs it; what it prints is the reason of a failure. Dropping the future kills it, and what it started.
pub(super) async fn run(command: &[String], hidden: &[PathBuf]) -> anyhow::Result<()> {
    let (reader, writer) = io::pipe().context("making a pipe")?;
    let mut reader = pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).context("reading a pipe")?;
    let mut process = Command::new("/proc/self/exe");
    process.arg0("mesh-agent").arg("sandbox");
    for path in hidden {
        process.arg("--hide").arg(path);
    }
    process
        .arg("--")
        .args(command)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .kill_on_drop(true);
    let mut child = process.spawn().context("starting the command's sandbox")?;
    // Holds our copies of the pipe's other end.
    drop(process);
    let _group = Group(child.id());
    let mut output = Vec::new();
    let mut buffer = [0; KEPT];
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.context("waiting for the command")?,
            read = reader.read(&mut buffer), if open => match read {
                Ok(length @ 1..) => keep(&mut output, &buffer[..length]),
                _ => open = false,
            },
        }
    };
    if status.success() {
        return Ok(());
    }
    while output.len() < KEPT
        && let Ok(length @ 1..) = reader.try_read(&mut buffer)
    {
        keep(&mut output, &buffer[..length]);
    }
    let said = String::from_utf8_lossy(&output);
    match (status.code(), status.signal()) {
        (Some(code), _) => bail!("the command ended with {code}: {}", said.trim()),
        (None, signal) => bail!(
            "the command was killed by signal {}: {}",
            signal.unwrap_or(0),
            said.trim()
        ),
    }
}

/// What is beyond the bound is read, so that the command does not hang, and forgotten.
fn keep(output: &mut Vec<u8>, fresh: &[u8]) {
    let room = KEPT.saturating_sub(output.len()).min(fresh.len());
    output.extend_from_slice(&fresh[..room]);
}

/// Killed as a whole when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

/// Bytes of output that are kept.
const KEPT: usize = 4096;
