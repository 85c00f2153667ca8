//! Wires: a bridge with machines, and a cable between two.

use std::cell::Cell;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::host::Host;

/// Machines on one bridge: 10.77.0.0/24 and fd77::/64.
#[derive(Debug)]
pub struct Lan {
    switch: Host,
    next: Cell<u8>,
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Lan {
    /// A bridge without machines. The bridge itself is 10.77.0.254 and fd77::fe.
    pub fn new() -> Self {
        let switch = Host::new("switch");
        switch.ip("link add br0 type bridge");
        switch.ip("addr add 10.77.0.254/24 dev br0");
        switch.ip("addr add fd77::fe/64 dev br0 nodad");
        switch.ip("link set br0 up");
        Self {
            switch,
            next: Cell::new(1),
        }
    }

    /// The machine that is the bridge.
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// A new machine, attached by `eth0`: the first has 10.77.0.1 and fd77::1.
    pub fn host(&self, name: &str) -> Host {
        let host = Host::new(name);
        self.attach(&host);
        host
    }

    /// Attaches a machine by `eth0`; gives its addresses.
    pub fn attach(&self, host: &Host) -> (Ipv4Addr, Ipv6Addr) {
        let number = self.next.replace(self.next.get() + 1);
        let (four, six) = Self::addresses(number);
        self.switch.ip(&format!(
            "link add port{number} type veth peer name eth0 netns {}",
            host.path()
        ));
        self.switch.ip(&format!("link set port{number} master br0 up"));
        host.ip(&format!("addr add {four}/24 dev eth0"));
        host.ip(&format!("addr add {six}/64 dev eth0 nodad"));
        host.ip("link set eth0 up");
        host.ip("route add default via 10.77.0.254");
        host.ip("-6 route add default via fd77::fe");
        host.wait_up("eth0");
        self.switch.wait_up(&format!("port{number}"));
        (four, six)
    }

    /// The addresses of the machine that was attached as the `number`th, from 1.
    pub fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, 77, 0, number),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)),
        )
    }
}

/// A cable between two machines: device and address (with prefix length) of each end.
pub fn cable(one: (&Host, &str, &str), other: (&Host, &str, &str)) {
    one.0.ip(&format!(
        "link add dev {} type veth peer name {} netns {}",
        one.1,
        other.1,
        other.0.path()
    ));
    for (host, device, address) in [one, other] {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        host.ip(&format!("addr add {address} dev {device}{nodad}"));
        host.ip(&format!("link set dev {device} up"));
    }
    one.0.wait_up(one.1);
    other.0.wait_up(other.1);
}
