//! Rules and routes over netlink.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::closed_on_failure;
use crate::config::{Capture, Config};

/// A connection to rtnetlink.
#[derive(Clone, Debug)]
pub(super) struct Netlink(Handle);

impl Netlink {
    pub(super) fn open() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The index of a device.
    pub(super) async fn device(&self, name: &str) -> anyhow::Result<u32> {
        let mut links = self.0.link().get().match_name(name.to_owned()).execute();
        let link = links.try_next().await.with_context(|| format!("looking for the device {name}"))?;
        Ok(link.with_context(|| format!("there is no device {name}"))?.header.index)
    }

    /// Refuses to go on when another device of this machine holds one of our addresses.
    pub(super) async fn check_collision(&self, own: u32, ours: &[IpAddr]) -> anyhow::Result<()> {
        let mut addresses = self.0.address().get().execute();
        while let Some(message) = addresses.try_next().await.context("listing addresses")? {
            let held = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let Some(held) = held.filter(|held| message.header.index != own && ours.contains(held)) else { continue };
            bail!("{held} is already an address of this machine; choose others in capture.address4 and dns.resolver4");
        }
        Ok(())
    }

    pub(super) async fn add_address6(&self, device: u32, address: Ipv6Addr) -> Result<(), rtnetlink::Error> {
        let mut request = self.0.address().add(device, address.into(), 128).replace();
        // No duplicate address detection: nobody else is on this link, and the address is needed at once.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        request.execute().await
    }

    /// Adds, for each prefix, the route into the TUN and the unreachable one behind it.
    pub(super) async fn add_routes(
        &self,
        capture: &Capture,
        device: u32,
        prefixes: impl Iterator<Item = &IpNet>,
    ) -> anyhow::Result<()> {
        let messages = prefixes.flat_map(|prefix| routes(capture, device, prefix));
        let added = stream::iter(messages.map(|message| {
            let route = self.0.route();
            async move { route.add(message).replace().execute().await }
        }));
        let results: Vec<_> = added.buffer_unordered(IN_FLIGHT).collect().await;
        for result in results {
            match result {
                // IPv6 may be switched off on the machine; then there is nothing to capture.
                Err(error) if errno(&error) != libc::EACCES && errno(&error) != libc::ENODEV => {
                    return Err(error).context("adding a route to our table");
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) async fn remove_routes(
        &self,
        capture: &Capture,
        device: u32,
        prefixes: impl Iterator<Item = &IpNet>,
    ) -> anyhow::Result<()> {
        self.delete(prefixes.flat_map(|prefix| routes(capture, device, prefix))).await.map(drop)
    }

    /// Removes all routes of a table; how many they were.
    pub(super) async fn flush_table(&self, table: u32) -> anyhow::Result<usize> {
        let routes = self.table(table).await?;
        self.delete(routes.into_iter()).await
    }

    async fn delete(&self, routes: impl Iterator<Item = RouteMessage>) -> anyhow::Result<usize> {
        let removed = stream::iter(routes.map(|message| {
            let route = self.0.route();
            async move { route.del(message).execute().await }
        }));
        let mut count = 0;
        let mut removed = removed.buffer_unordered(IN_FLIGHT);
        while let Some(result) = removed.next().await {
            match result {
                Ok(()) => count += 1,
                // It is gone already, with its device.
                Err(error) if errno(&error) == libc::ESRCH || errno(&error) == libc::ENOENT => {}
                Err(error) => return Err(error).context("removing a route from our table"),
            }
        }
        Ok(count)
    }

    /// Prefixes that an earlier agent left unreachable in a table.
    pub(super) async fn unreachable_prefixes(&self, table: u32) -> anyhow::Result<std::collections::BTreeSet<IpNet>> {
        let routes = self.table(table).await?;
        Ok(routes.iter().filter(|route| route.header.kind == RouteType::Unreachable).filter_map(prefix).collect())
    }

    async fn table(&self, table: u32) -> anyhow::Result<Vec<RouteMessage>> {
        let mut found = Vec::new();
        for message in [RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let mut routes = self.0.route().get(message).execute();
            while let Some(route) = routes.try_next().await.context("listing routes")? {
                if route.attributes.contains(&RouteAttribute::Table(table)) {
                    found.push(route);
                }
            }
        }
        Ok(found)
    }

    /// Adds a rule; one that stands already is left as it is.
    pub(super) async fn add_rule(&self, rule: &RuleMessage) -> anyhow::Result<()> {
        let mut request = self.0.rule().add();
        *request.message_mut() = rule.clone();
        match request.execute().await {
            Err(error) if errno(&error) == libc::EEXIST => Ok(()),
            // No IPv6 on this machine.
            Err(error) if errno(&error) == libc::EAFNOSUPPORT => Ok(()),
            other => other.context("adding a policy rule; the agent needs CAP_NET_ADMIN"),
        }
    }

    /// Removes our rules by their priorities; how many they were.
    pub(super) async fn remove_rules(&self, config: &Config) -> anyhow::Result<usize> {
        let mut ours = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = self.0.rule().get(version).execute();
            while let Some(rule) = rules.try_next().await.context("listing policy rules")? {
                let priority = rule.attributes.iter().find_map(|attribute| match attribute {
                    RuleAttribute::Priority(priority) => Some(*priority),
                    _ => None,
                });
                if priority.is_some_and(|at| priorities(&config.capture).contains(&at)) {
                    ours.push(rule);
                }
            }
        }
        let count = ours.len();
        for rule in ours {
            match self.0.rule().del(rule).execute().await {
                Err(error) if errno(&error) != libc::ENOENT => return Err(error).context("removing a policy rule"),
                _ => {}
            }
        }
        Ok(count)
    }
}

fn errno(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map_or(0, |code| -code.get()),
        _ => 0,
    }
}

fn prefix(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    IpNet::new(address?, route.header.destination_prefix_length).ok()
}

/// The route into the TUN, and a worse one that stands when the device is gone.
fn routes(capture: &Capture, device: u32, prefix: &IpNet) -> Vec<RouteMessage> {
    let message = |kind, metric, device: Option<u32>| {
        let (length, table) = (prefix.prefix_len(), capture.table);
        // The builder's IPv4 and IPv6 forms are different types.
        let mut message = match prefix.addr() {
            IpAddr::V4(v4) => {
                let builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, length);
                let builder = builder.table_id(table).priority(metric).protocol(RouteProtocol::Static).kind(kind);
                device.map_or(builder.clone(), |device| builder.output_interface(device)).build()
            }
            IpAddr::V6(v6) => {
                let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, length);
                let builder = builder.table_id(table).priority(metric).protocol(RouteProtocol::Static).kind(kind);
                device.map_or(builder.clone(), |device| builder.output_interface(device)).build()
            }
        };
        if device.is_some() {
            message.header.scope = rtnetlink::packet_route::route::RouteScope::Link;
        }
        message
    };
    let mut routes = Vec::with_capacity(2);
    if closed_on_failure(capture) {
        routes.push(message(RouteType::Unreachable, METRIC_UNREACHABLE, None));
    }
    routes.push(message(RouteType::Unicast, METRIC_TUN, Some(device)));
    routes
}

/// Our rules, for both families. Never an inversion: `not` would invert all selectors of a rule together.
pub(super) fn rules(config: &Config) -> Vec<RuleMessage> {
    let families = [AddressFamily::Inet, AddressFamily::Inet6];
    families.into_iter().flat_map(|family| family_rules(config, family)).collect()
}

fn family_rules(config: &Config, family: AddressFamily) -> Vec<RuleMessage> {
    let capture = &config.capture;
    let first = capture.rule_priority;
    let end = *priorities(capture).end();
    let v4 = family == AddressFamily::Inet;
    let rule = |priority, action, more: Vec<RuleAttribute>| {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.header.action = action;
        message.attributes.push(RuleAttribute::Priority(priority));
        message.attributes.extend(more);
        message
    };
    let lookup = |priority, more: Vec<RuleAttribute>| {
        let table = vec![RuleAttribute::Table(capture.table)];
        rule(priority, RuleAction::ToTable, [table, more].concat())
    };
    let from_here = || RuleAttribute::Iifname("lo".into());
    let (resolver, own): (IpAddr, IpAddr) = if v4 {
        (config.dns.resolver4.into(), capture.address4.into())
    } else {
        (config.dns.resolver6.into(), capture.address6.into())
    };
    let bits = if v4 { 32 } else { 128 };

    let mut dns = lookup(
        first + 2,
        vec![from_here(), RuleAttribute::IpProtocol(IpProtocol::Udp), RuleAttribute::Destination(resolver)],
    );
    dns.header.dst_len = bits;
    // Strict reverse-path filters look for the way back to a captured source without knowing the protocol, so that the
    // rule by protocol does not help there; this one does, and nothing but captured flows has this source.
    let mut back = lookup(first + 3, vec![from_here(), RuleAttribute::Source(own)]);
    back.header.src_len = bits;

    // The target of the jump must stand before the jump.
    let mut rules = vec![
        rule(end, RuleAction::Nop, Vec::new()),
        rule(
            first,
            RuleAction::Goto,
            vec![
                RuleAttribute::FwMark(capture.mark),
                RuleAttribute::FwMask(u32::MAX),
                RuleAttribute::Goto(end),
            ],
        ),
        dns,
        back,
    ];
    // Without a protocol, because reverse-path checks do not know it; the guard marks what is not TCP, so that it passes by.
    for (bridge, priority) in capture.forward_interfaces.iter().zip(first + 4..end) {
        rules.push(lookup(priority, vec![RuleAttribute::Iifname(bridge.clone())]));
    }
    rules.push(lookup(first + 1, vec![from_here(), RuleAttribute::IpProtocol(IpProtocol::Tcp)]));
    rules
}

/// Priorities that are ours.
fn priorities(capture: &Capture) -> std::ops::RangeInclusive<u32> {
    capture.rule_priority..=capture.rule_priority + 19
}

const METRIC_TUN: u32 = 10;
const METRIC_UNREACHABLE: u32 = 4096;
/// Requests that wait for their acknowledgement at a time.
const IN_FLIGHT: usize = 256;
