//! Whether our nftables table is there: others may empty all of nftables (`nft flush ruleset`, a firewall that starts again).
//!
//! Asked of the kernel itself, because `nft` is a process for each question.

use std::io;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Asks for the table `inet mesh_agent` by name.
pub(super) fn is_there() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    socket.send(&question(), 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    read(&answer)
}

/// `nlmsghdr`, `nfgenmsg` and one attribute (linux/netlink.h, linux/netfilter/nfnetlink.h, nf_tables.h).
fn question() -> Vec<u8> {
    let mut message = Vec::with_capacity(36);
    message.extend_from_slice(&36_u32.to_ne_bytes());
    message.extend_from_slice(&(SUBSYSTEM | GET_TABLE).to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[FAMILY_INET, 0, 0, 0]);
    message.extend_from_slice(&15_u16.to_ne_bytes());
    message.extend_from_slice(&TABLE_NAME.to_ne_bytes());
    message.extend_from_slice(b"mesh_agent\0\0");
    message
}

/// The table, or an error.
fn read(answer: &[u8]) -> io::Result<bool> {
    let field = |at: usize| answer.get(at..at + 4).and_then(<[u8]>::first_chunk::<4>);
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let [low, high, ..] = *field(4).ok_or_else(short)?;
    if u16::from_ne_bytes([low, high]) != ERROR {
        return Ok(true);
    }
    match -i32::from_ne_bytes(*field(16).ok_or_else(short)?) {
        0 => Ok(true),
        code if code == Errno::ENOENT as i32 => Ok(false),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Seconds that the kernel may take; it answers at once.
const PATIENCE: i64 = 1;
/// NFNL_SUBSYS_NFTABLES, in the upper half of the type.
const SUBSYSTEM: u16 = 10 << 8;
/// NFT_MSG_GETTABLE.
const GET_TABLE: u16 = 1;
/// NLM_F_REQUEST.
const REQUEST: u16 = 1;
/// NFPROTO_INET.
const FAMILY_INET: u8 = 1;
/// NFTA_TABLE_NAME.
const TABLE_NAME: u16 = 1;
/// NLMSG_ERROR.
const ERROR: u16 = 2;
