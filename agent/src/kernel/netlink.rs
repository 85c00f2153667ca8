//! A blocking rtnetlink socket that sends many messages in one datagram.
//!
//! `rtnetlink`'s handle sends one datagram per message and awaits each answer; with 100,000 routes that is what costs.
//! So its message types and socket are used, and batches are made here: only the last message of a batch asks for an
//! acknowledgement, since errors are told in any case.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::KernelError;

/// Messages of one datagram: 200 routes are about 15 KiB, and the errors of all of them fit into the receive buffer.
const BATCH: usize = 200;
/// The kernel answers at once; more means that an answer was lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection to the kernel's routing part.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

/// One message with the flags it needs besides `NLM_F_REQUEST`, and the errors that mean "already so".
#[derive(Debug)]
pub(super) struct Change {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
    pub(super) fine: &'static [i32],
}

impl Netlink {
    pub(super) fn open() -> Result<Self, KernelError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Filters of dumps (by table) are ignored without it; kernels before 4.20 lack it, and we filter again.
            let _ = socket.set_netlink_get_strict_chk(true);
            // Errors then do not quote the request.
            let _ = socket.set_cap_ack(true);
            let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
            Ok(socket)
        };
        let socket = open().map_err(|error| failed("opening a netlink socket", error))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Everything that a GET message finds.
    pub(super) fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        append(&mut bytes, message, NLM_F_DUMP, sequence);
        let run = || -> io::Result<Vec<RouteNetlinkMessage>> {
            self.socket.send(&bytes, 0)?;
            let mut found = Vec::new();
            loop {
                for answer in self.receive()? {
                    if answer.header.sequence_number != sequence {
                        continue;
                    }
                    match answer.payload {
                        NetlinkPayload::InnerMessage(message) => found.push(message),
                        NetlinkPayload::Done(_) => return Ok(found),
                        NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                        _ => {}
                    }
                }
            }
        };
        run().map_err(|error| failed(what, error))
    }

    /// Makes changes in order. All are tried; the first error that is not fine is returned.
    pub(super) fn apply(&mut self, what: &str, changes: impl IntoIterator<Item = Change>) -> Result<(), KernelError> {
        let mut changes = changes.into_iter().peekable();
        let mut first_error = None;
        while changes.peek().is_some() {
            let batch: Vec<Change> = changes.by_ref().take(BATCH).collect();
            if let Some(error) = self.send_batch(batch).map_err(|error| failed(what, error))? {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), |error| Err(failed(what, error)))
    }

    /// Sends one datagram and reads until its last message is answered; gives the first error that is not fine.
    fn send_batch(&mut self, batch: Vec<Change>) -> io::Result<Option<io::Error>> {
        let first = self.sequence.wrapping_add(1);
        let count = batch.len();
        let mut fine = Vec::with_capacity(count);
        let mut bytes = Vec::with_capacity(count * 96);
        for (index, change) in batch.into_iter().enumerate() {
            let sequence = self.next_sequence();
            let acknowledge = if index + 1 == count { NLM_F_ACK } else { 0 };
            fine.push(change.fine);
            append(&mut bytes, change.message, change.flags | acknowledge, sequence);
        }
        let last = self.sequence;
        self.socket.send(&bytes, 0)?;
        let mut first_error = None;
        loop {
            for answer in self.receive()? {
                let sequence = answer.header.sequence_number;
                let index = sequence.wrapping_sub(first) as usize;
                let NetlinkPayload::Error(error) = answer.payload else {
                    continue;
                };
                let Some(fine) = fine.get(index) else { continue };
                if error.code.is_some() {
                    let error = error.to_io();
                    if !error.raw_os_error().is_some_and(|code| fine.contains(&code)) {
                        first_error.get_or_insert(error);
                    }
                }
                if sequence == last {
                    return Ok(first_error);
                }
            }
        }
    }

    /// The messages of one datagram.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = &bytes[..];
        let mut messages = Vec::new();
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // What the crate cannot read (a rule or route of a kind it does not know) is not ours.
            if let Ok(message) = NetlinkMessage::deserialize(&rest[..length]) {
                messages.push(message);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

pub(super) fn failed(what: &str, error: io::Error) -> KernelError {
    KernelError::Netlink {
        what: what.into(),
        error,
    }
}

fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}
