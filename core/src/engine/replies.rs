//! Packets that we made outside of a flow's socket and that wait for the TUN: datagrams, RST, ICMP, bare ACKs.

use std::collections::VecDeque;
use std::time::Duration;

use super::api::{Instant, PacketOut};

/// More packets than this do not wait.
const PACKETS: usize = 4096;
/// Nor more bytes.
const BYTES: usize = 16 << 20;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Replies {
    queue: VecDeque<Reply>,
    bytes: usize,
}

/// One packet that waits.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) partial_checksum: Option<(u16, u16)>,
}

impl Replies {
    /// Appends a packet; false when the queue is full.
    pub(super) fn push(&mut self, reply: Reply) -> bool {
        if self.queue.len() >= PACKETS || self.bytes + reply.bytes.len() > BYTES {
            return false;
        }
        self.bytes += reply.bytes.len();
        self.queue.push_back(reply);
        true
    }

    /// Copies the next packet to the start of `out`; one that does not fit is skipped.
    pub(super) fn pop(&mut self, out: &mut [u8]) -> Option<PacketOut> {
        loop {
            let reply = self.queue.pop_front()?;
            let len = reply.bytes.len();
            self.bytes -= len;
            let Some(room) = out.get_mut(..len) else { continue };
            room.copy_from_slice(&reply.bytes);
            let version = reply.bytes.first().map_or(4, |first| first >> 4);
            return Some(PacketOut {
                len,
                partial_checksum: reply.partial_checksum,
                gso_size: None,
                version,
            });
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

/// How often strangers are answered: a token bucket, so that a flood of stray segments costs no flood of answers.
#[derive(Debug)]
pub(super) struct Budget {
    tokens: u32,
    refilled: Instant,
}

impl Budget {
    const BURST: u32 = 256;
    /// One more answer each this long: 1,000 a second, the kernel's own default for ICMP.
    const INTERVAL: Duration = Duration::from_millis(1);

    pub(super) fn new() -> Self {
        Self {
            tokens: Self::BURST,
            refilled: Instant::ZERO,
        }
    }

    /// Takes one answer out of the budget.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_sub(self.refilled);
        let due = u32::try_from(elapsed.as_nanos() / Self::INTERVAL.as_nanos()).unwrap_or(u32::MAX);
        if due > 0 {
            self.tokens = self.tokens.saturating_add(due).min(Self::BURST);
            self.refilled = now;
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }
}
