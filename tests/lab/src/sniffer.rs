//! Records what passes a device, to look for bytes that must or must not be there.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::host::{Host, Proc};

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Sniffer {
    process: Proc,
    file: PathBuf,
}

impl Sniffer {
    /// Starts recording on `device` (or `any`) what matches the pcap `filter` (empty: all); returns once it listens.
    pub fn start(host: &Host, device: &str, filter: &str) -> Self {
        let file = host
            .directory()
            .join(format!("sniff-{device}-{:x}.pcap", fingerprint(filter)));
        let mut command = host.command("tcpdump");
        command
            .args([
                "--immediate-mode",
                "-U",
                "-n",
                "-Z",
                "root",
                "-B",
                "65536",
                "-s",
                "0",
                "-i",
                device,
                "-w",
            ])
            .arg(&file)
            .args(filter.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = host.spawn(&mut command);
        let stderr = process.0.stderr.take().expect("piped");
        let mut said = String::new();
        let listens = BufReader::new(stderr).lines().map_while(Result::ok).any(|line| {
            said.push_str(&line);
            line.contains("listening on")
        });
        assert!(listens, "tcpdump on {}: {said}", host.name());
        Self { process, file }
    }

    /// Everything recorded until now, as the bytes of the pcap file.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.file).expect("reading what was recorded")
    }

    /// Stops recording; gives the bytes of the pcap file.
    pub fn stop(mut self) -> Vec<u8> {
        self.process.signal(libc::SIGINT);
        self.process.wait(Duration::from_secs(10));
        self.bytes()
    }

    /// Whether recorded bytes contain `needle` (inside one packet).
    pub fn contains(recorded: &[u8], needle: &[u8]) -> bool {
        recorded.windows(needle.len()).any(|window| window == needle)
    }
}

/// Tells two recorders on one device apart.
fn fingerprint(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
