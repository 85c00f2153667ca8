//! The routes of our tables: for each captured prefix one through the device, and one `unreachable` of worse metric, which
//! stays when the device vanishes. The table of preserved callers has both for everything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::device::{family, no_ipv6};
use super::netlink::{Change, Netlink};
use super::{KernelError, PROTOCOL, fails_closed};
use crate::config::Capture;

const METRIC_DEVICE: u32 = 100;
const METRIC_UNREACHABLE: u32 = 1_000_000;
/// Removing what is not there is no error: no such route, no such device.
const GONE: &[i32] = &[Errno::ESRCH as i32, Errno::ENODEV as i32, Errno::ENOENT as i32];

/// What is in our table now.
#[derive(Debug)]
pub(super) struct Routes {
    table: u32,
    device: u32,
    sources: [IpAddr; 2],
    closed: bool,
    present: BTreeSet<(IpNet, Kind)>,
    /// A change failed, so `present` may be wrong.
    doubtful: bool,
}

/// What a route of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Device,
    Unreachable,
}

impl Routes {
    /// Finds what an earlier run left in the table of captured prefixes.
    pub(super) fn take_over(netlink: &mut Netlink, capture: &Capture, device: u32) -> Result<Self, KernelError> {
        let mut routes = Self::new(capture, capture.table, device, fails_closed(capture));
        routes.look(netlink)?;
        Ok(routes)
    }

    /// Makes the table of preserved callers: all of it leads to the device, and to nothing without one. What a caller was
    /// promised to be carried encrypted never goes plain, whatever `capture.on_failure` says.
    pub(super) fn install_callers(netlink: &mut Netlink, capture: &Capture, device: u32) -> Result<(), KernelError> {
        let mut routes = Self::new(capture, capture.caller_table(), device, true);
        routes.look(netlink)?;
        let everything = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let everything = everything.into_iter().filter_map(|address| IpNet::new(address, 0).ok());
        routes.update(netlink, everything.collect())
    }

    fn new(capture: &Capture, table: u32, device: u32, closed: bool) -> Self {
        Self {
            table,
            device,
            sources: [capture.address4.into(), capture.address6.into()],
            closed,
            present: BTreeSet::new(),
            doubtful: false,
        }
    }

    /// The prefixes that have a route of either kind.
    pub(super) fn prefixes(&self) -> BTreeSet<IpNet> {
        self.present.iter().map(|(prefix, _)| *prefix).collect()
    }

    /// Makes the table hold exactly these prefixes. New prefixes become unreachable first, and then captured.
    pub(super) fn update(&mut self, netlink: &mut Netlink, prefixes: BTreeSet<IpNet>) -> Result<(), KernelError> {
        if self.doubtful {
            self.look(netlink)?;
        }
        let kinds = if self.closed {
            &[Kind::Unreachable, Kind::Device][..]
        } else {
            &[Kind::Device]
        };
        let wanted: BTreeSet<(IpNet, Kind)> = prefixes
            .into_iter()
            .flat_map(|prefix| kinds.iter().map(move |kind| (prefix, *kind)))
            .collect();
        let added: Vec<_> = wanted.difference(&self.present).copied().collect();
        let removed: Vec<_> = self.present.difference(&wanted).copied().collect();
        self.doubtful = true;
        let (six, four): (Vec<_>, Vec<_>) = added.into_iter().partition(|(prefix, _)| prefix.addr().is_ipv6());
        netlink.apply(
            "capturing prefixes",
            four.iter().map(|(prefix, kind)| self.add(prefix, *kind)),
        )?;
        match netlink.apply(
            "capturing prefixes",
            six.iter().map(|(prefix, kind)| self.add(prefix, *kind)),
        ) {
            Err(error) if no_ipv6(&error) => tracing::debug!(%error, "no IPv6 prefixes are captured"),
            other => other?,
        }
        netlink.apply(
            "releasing prefixes",
            removed.iter().map(|(prefix, kind)| self.delete(prefix, *kind)),
        )?;
        self.present = wanted;
        self.doubtful = false;
        Ok(())
    }

    /// Asks the kernel what is in the table.
    fn look(&mut self, netlink: &mut Netlink) -> Result<(), KernelError> {
        self.present.clear();
        for route in dump(netlink, self.table)? {
            let kind = match route.header.kind {
                RouteType::Unicast => Kind::Device,
                _ => Kind::Unreachable,
            };
            // A route of an earlier device of ours is none of this one's.
            let through = output(&route).is_none_or(|index| index == self.device);
            if let Some(prefix) = destination(&route).filter(|_| kind == Kind::Unreachable || through) {
                self.present.insert((prefix, kind));
            }
        }
        Ok(())
    }

    fn add(&self, prefix: &IpNet, kind: Kind) -> Change {
        let mut route = self.route(prefix, kind);
        if kind == Kind::Device {
            let source = self.sources[usize::from(prefix.addr().is_ipv6())];
            // Else the application's source would be any address of the machine.
            route.attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        Change {
            message: RouteNetlinkMessage::NewRoute(route),
            flags: NLM_F_CREATE | NLM_F_REPLACE,
            fine: &[Errno::EEXIST as i32],
        }
    }

    fn delete(&self, prefix: &IpNet, kind: Kind) -> Change {
        Change {
            message: RouteNetlinkMessage::DelRoute(self.route(prefix, kind)),
            flags: 0,
            fine: GONE,
        }
    }

    fn route(&self, prefix: &IpNet, kind: Kind) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = family(&prefix.addr());
        route.header.destination_prefix_length = prefix.prefix_len();
        route.header.protocol = RouteProtocol::from(PROTOCOL);
        set_table(&mut route, self.table);
        route.attributes.push(RouteAttribute::Destination(prefix.addr().into()));
        match kind {
            Kind::Device => {
                route.header.kind = RouteType::Unicast;
                route.header.scope = RouteScope::Link;
                route.attributes.push(RouteAttribute::Oif(self.device));
                route.attributes.push(RouteAttribute::Priority(METRIC_DEVICE));
            }
            Kind::Unreachable => {
                route.header.kind = RouteType::Unreachable;
                route.attributes.push(RouteAttribute::Priority(METRIC_UNREACHABLE));
            }
        }
        route
    }
}

/// Removes every route of a table.
pub(super) fn flush(netlink: &mut Netlink, table: u32) -> Result<(), KernelError> {
    let routes = dump(netlink, table)?;
    netlink.apply(
        "removing our routes",
        routes.into_iter().map(|mut route| {
            // What the kernel tells beyond the key may not be told back to it.
            route.attributes.retain(|attribute| {
                matches!(
                    attribute,
                    RouteAttribute::Destination(_)
                        | RouteAttribute::Oif(_)
                        | RouteAttribute::Priority(_)
                        | RouteAttribute::Table(_)
                )
            });
            route.header.flags = rtnetlink::packet_route::route::RouteFlags::empty();
            Change {
                message: RouteNetlinkMessage::DelRoute(route),
                flags: 0,
                fine: GONE,
            }
        }),
    )
}

fn dump(netlink: &mut Netlink, table: u32) -> Result<Vec<RouteMessage>, KernelError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        set_table(&mut filter, table);
        let routes = match netlink.dump("listing our routes", RouteNetlinkMessage::GetRoute(filter)) {
            Ok(routes) => routes,
            // The kernel says so of a table that does not exist yet, and of a family that it lacks.
            Err(KernelError::Netlink { error, .. }) if not_there(&error) => continue,
            Err(error) => return Err(error),
        };
        found.extend(routes.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if table_of(&route) == table => Some(route),
            _ => None,
        }));
    }
    Ok(found)
}

fn not_there(error: &std::io::Error) -> bool {
    let codes = [Errno::ENOENT, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

fn set_table(route: &mut RouteMessage, table: u32) {
    // Numbers above 255 go into the attribute; the header then says "unspecified".
    route.header.table = u8::try_from(table).unwrap_or_default();
    route.attributes.push(RouteAttribute::Table(table));
}

fn table_of(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or_else(|| u32::from(route.header.table))
}

fn output(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(four)) => Some(IpAddr::V4(*four)),
        RouteAttribute::Destination(RouteAddress::Inet6(six)) => Some(IpAddr::V6(*six)),
        _ => None,
    });
    // A default route has no destination.
    let address = address.or(match route.header.address_family {
        AddressFamily::Inet => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        AddressFamily::Inet6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}
