//! The policy rules, IPv4 and IPv6, at three priorities from P (the setting `capture.rule_priority`):
//!
//! * P: our own sockets (mark M) go to P+2, past the rest; what answers preserved callers (mark M+1) looks into the table of
//!   these, which always has an answer.
//! * P+1: what this machine itself sends (`iif lo`) by TCP, or by UDP to the resolver, looks into our table; so does UDP that
//!   the guard marked ([`udp_mark`]), and TCP and UDP that is forwarded from a named bridge; so does [`REVERSE_TOS`].
//! * P+2: nothing; the target of the jump.
//!
//! And after the main table, at [`LAST`]: UDP that no other table has a way for, as to an IPv6 address of the mesh on a machine
//! that has none itself.

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Change, Netlink};
use super::{KernelError, PROTOCOL};
use crate::config::{Capture, Dns};

/// TOS of packets that come out of the TUN: DSCP 3, of the pool for local use (RFC 2474 section 6). The guard sets it
/// before the kernel asks by which way the packet's source would be reached (`rp_filter`). That question carries the TOS
/// but no protocol, so that `ipproto tcp` cannot match it; this rule does, and the answer is the TUN.
pub(super) const REVERSE_TOS: u8 = 3 << 2;

/// Priority of our last rule; the kernel's own end at 32767.
const LAST: u32 = 32_800;

/// Mark by which UDP comes to our table. See the guard's `replies`.
pub(super) fn udp_mark(capture: &Capture) -> u32 {
    capture.mark ^ 0x1_0000
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Makes the rules exactly ours: first adds what is missing, targets before jumps, then removes what is too much.
pub(super) fn install(netlink: &mut Netlink, capture: &Capture, dns: &Dns) -> Result<(), KernelError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let present = match ours(netlink, capture, family) {
            Ok(present) => present,
            Err(error) if family == AddressFamily::Inet6 && unsupported(&error) => {
                tracing::warn!("the kernel has no policy rules for IPv6; only IPv4 is captured");
                continue;
            }
            Err(error) => return Err(error),
        };
        let wanted = wanted(capture, dns, family);
        let missing = wanted
            .iter()
            .filter(|rule| !present.iter().any(|other| same(rule, other)));
        let surplus = present
            .iter()
            .filter(|rule| !wanted.iter().any(|other| same(rule, other)));
        netlink.apply("adding our policy rules", missing.cloned().map(add))?;
        netlink.apply("removing old policy rules", surplus.cloned().map(delete))?;
    }
    Ok(())
}

/// Whether any of ours is there: of a run that was killed.
pub(super) fn are_there(netlink: &mut Netlink, capture: &Capture) -> Result<bool, KernelError> {
    Ok(!ours(netlink, capture, AddressFamily::Inet)?.is_empty())
}

/// Removes all of ours: first those that lead into the table.
pub(super) fn remove(netlink: &mut Netlink, capture: &Capture) -> Result<(), KernelError> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut present = match ours(netlink, capture, family) {
            Err(error) if family == AddressFamily::Inet6 && unsupported(&error) => continue,
            other => other?,
        };
        present.sort_by_key(|rule| rule.header.action != RuleAction::ToTable);
        netlink.apply("removing our policy rules", present.into_iter().map(delete))?;
    }
    Ok(())
}

fn wanted(capture: &Capture, dns: &Dns, family: AddressFamily) -> Vec<RuleMessage> {
    let resolver = match family {
        AddressFamily::Inet => IpAddr::V4(dns.resolver4),
        _ => IpAddr::V6(dns.resolver6),
    };
    let first = capture.rule_priority;
    let rule = |priority: u32, action: RuleAction, attributes: Vec<RuleAttribute>| {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.action = action;
        rule.attributes = vec![
            RuleAttribute::Priority(priority),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ];
        rule.attributes.extend(attributes);
        rule
    };
    let to_table = |priority: u32, table: u32, attributes: Vec<RuleAttribute>| {
        let mut rule = rule(priority, RuleAction::ToTable, attributes);
        rule.header.table = u8::try_from(table).unwrap_or_default();
        rule.attributes.push(RuleAttribute::Table(table));
        rule
    };
    let lookup = |attributes| to_table(first + 1, capture.table, attributes);
    let local = || RuleAttribute::Iifname("lo".into());
    let mut rules = vec![
        rule(first + 2, RuleAction::Nop, vec![]),
        rule(
            first,
            RuleAction::Goto,
            vec![
                RuleAttribute::FwMark(capture.mark),
                RuleAttribute::FwMask(u32::MAX),
                RuleAttribute::Goto(first + 2),
            ],
        ),
        to_table(
            first,
            capture.caller_table(),
            vec![
                RuleAttribute::FwMark(capture.caller_mark()),
                RuleAttribute::FwMask(u32::MAX),
            ],
        ),
        lookup(vec![local(), RuleAttribute::IpProtocol(TCP.into())]),
    ];
    let mut udp = lookup(vec![
        local(),
        RuleAttribute::IpProtocol(UDP.into()),
        RuleAttribute::Destination(resolver),
    ]);
    udp.header.dst_len = if resolver.is_ipv4() { 32 } else { 128 };
    rules.push(udp);
    rules.push(lookup(vec![
        local(),
        RuleAttribute::FwMark(udp_mark(capture)),
        RuleAttribute::FwMask(u32::MAX),
    ]));
    rules.push(to_table(
        LAST,
        capture.table,
        vec![local(), RuleAttribute::IpProtocol(UDP.into())],
    ));
    let mut reverse = lookup(vec![local()]);
    reverse.header.tos = REVERSE_TOS;
    rules.push(reverse);
    for bridge in &capture.forward_interfaces {
        for protocol in [TCP, UDP] {
            rules.push(lookup(vec![
                RuleAttribute::Iifname(bridge.clone()),
                RuleAttribute::IpProtocol(protocol.into()),
            ]));
        }
    }
    rules
}

/// Rules at our priorities that carry our protocol number or lead into our table.
fn ours(netlink: &mut Netlink, capture: &Capture, family: AddressFamily) -> Result<Vec<RuleMessage>, KernelError> {
    let mut filter = RuleMessage::default();
    filter.header.family = family;
    let rules = netlink.dump("listing policy rules", RouteNetlinkMessage::GetRule(filter))?;
    let priorities = capture.rule_priority..=capture.rule_priority + 2;
    Ok(rules
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        })
        .filter(|rule| {
            let has = |wanted: &RuleAttribute| rule.attributes.contains(wanted);
            let placed = rule.attributes.iter().any(
                |attribute| matches!(attribute, RuleAttribute::Priority(priority) if *priority == LAST || priorities.contains(priority)),
            );
            placed
                && (has(&RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)))
                    || has(&RuleAttribute::Table(capture.table)))
        })
        .collect())
}

/// Whether two rules match the same and do the same. The kernel adds attributes of its own.
fn same(one: &RuleMessage, other: &RuleMessage) -> bool {
    let header = |rule: &RuleMessage| {
        (
            rule.header.action,
            rule.header.tos,
            rule.header.dst_len,
            rule.header.src_len,
        )
    };
    header(one) == header(other) && selectors(one) == selectors(other)
}

fn selectors(rule: &RuleMessage) -> Vec<String> {
    let mut selectors: Vec<String> = rule
        .attributes
        .iter()
        .filter(|attribute| match attribute {
            RuleAttribute::Priority(_)
            | RuleAttribute::Iifname(_)
            | RuleAttribute::FwMark(_)
            | RuleAttribute::FwMask(_)
            | RuleAttribute::Goto(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::Destination(_)
            | RuleAttribute::Source(_)
            | RuleAttribute::Oifname(_) => true,
            RuleAttribute::Table(table) => *table != 0,
            _ => false,
        })
        .map(|attribute| format!("{attribute:?}"))
        .collect();
    selectors.sort();
    selectors
}

fn add(rule: RuleMessage) -> Change {
    Change {
        message: RouteNetlinkMessage::NewRule(rule),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        fine: &[Errno::EEXIST as i32],
    }
}

fn delete(mut rule: RuleMessage) -> Change {
    rule.header.flags = rtnetlink::packet_route::rule::RuleFlags::empty();
    rule.attributes.retain(|attribute| {
        !matches!(
            attribute,
            RuleAttribute::SuppressPrefixLen(_) | RuleAttribute::SuppressIfGroup(_) | RuleAttribute::Other(_)
        )
    });
    Change {
        message: RouteNetlinkMessage::DelRule(rule),
        flags: 0,
        fine: &[Errno::ENOENT as i32],
    }
}

fn unsupported(error: &KernelError) -> bool {
    let KernelError::Netlink { error, .. } = error else {
        return false;
    };
    let codes = [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}
