//! The local kernel and its application: a smoltcp stack in client mode with one socket a connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

#[derive(Default)]
struct Wire {
    to_host: VecDeque<Vec<u8>>,
    from_host: VecDeque<Vec<u8>>,
}

pub struct Host {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
}

pub const ADDRESS4: &str = "100.64.100.1";
pub const ADDRESS6: &str = "fd6d:6573:68::1";

impl Host {
    pub fn new(seed: u64) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(ADDRESS4.parse::<std::net::Ipv4Addr>().unwrap().into(), 0))
                .unwrap();
            addresses
                .push(IpCidr::new(ADDRESS6.parse::<std::net::Ipv6Addr>().unwrap().into(), 0))
                .unwrap();
        });
        Self {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    pub fn connect(&mut self, local: SocketAddr, to: SocketAddr, ring: usize) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; ring]);
        let mut socket = Socket::new(buffer(), buffer());
        let end = |address: SocketAddr| IpEndpoint::new(IpAddress::from(address.ip()), address.port());
        socket.connect(self.interface.context(), end(to), end(local)).unwrap();
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn is_established(&mut self, handle: SocketHandle) -> bool {
        !matches!(self.socket(handle).state(), State::SynSent | State::Closed)
    }

    pub fn deliver(&mut self, packet: Vec<u8>) {
        self.wire.to_host.push_back(packet);
    }

    pub fn poll(&mut self, now: Duration) {
        self.interface.poll(smol(now), &mut self.wire, &mut self.sockets);
    }

    pub fn sent(&mut self) -> Option<Vec<u8>> {
        self.wire.from_host.pop_front()
    }

    pub fn poll_at(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        Some(Duration::from_micros(at.total_micros().max(0) as u64))
    }
}

fn smol(now: Duration) -> Instant {
    Instant::from_micros(now.as_micros() as i64)
}

pub struct Rx(Vec<u8>);
pub struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let packet = self.to_host.pop_front()?;
        Some((Rx(packet), Tx(&mut self.from_host)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.from_host))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 65_535;
        capabilities
    }
}
