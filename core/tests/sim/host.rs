//! The local kernel and its applications: a second smoltcp stack, in client mode, with the ICMP that smoltcp lacks.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_core::packet::{Flags, Packet, Tcp, Transport};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};

pub(crate) const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
pub(crate) const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
/// Below 64 KiB, so that the window needs no scale.
const BUFFER: usize = 65_535;

/// What the application was told instead of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    Reset,
    /// ICMP type and code.
    Icmp(u8, u8),
}

/// One connection of an application.
#[derive(Debug)]
pub(crate) struct Client {
    handle: SocketHandle,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Bytes that the application wants to send, and that its socket took.
    pub(crate) to_send: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) finish: bool,
    pub(crate) reading: bool,
    finished: bool,
    pub(crate) aborted: bool,
    pub(crate) connected: bool,
    pub(crate) end_seen: bool,
    pub(crate) told: Option<Told>,
    seed: u64,
    /// The latest acknowledgement that arrived, and the largest window that came with it.
    window: Option<(u32, u16)>,
}

pub(crate) struct Host {
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    pub(crate) clients: Vec<Client>,
    /// Datagrams that arrived: from, to, payload.
    pub(crate) datagrams: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// ICMP errors that quote a datagram.
    pub(crate) datagrams_refused: usize,
}

/// Byte `at` of a stream.
pub(crate) fn pattern(seed: u64, at: u64) -> u8 {
    let mixed = at
        .wrapping_mul(0x9e37_79b9)
        .wrapping_add(seed.wrapping_mul(0x85eb_ca6b));
    u8::try_from((mixed >> 11) & 0xff).unwrap()
}

pub(crate) fn smol(now: Duration) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.as_micros()).unwrap())
}

impl Host {
    pub(crate) fn new(mtu: u16, seed: u64) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut wire = Wire {
            mtu: usize::from(mtu),
            incoming: None,
            outgoing: VecDeque::new(),
        };
        let mut interface = Interface::new(config, &mut wire, smol(Duration::ZERO));
        interface.update_ip_addrs(|addresses| {
            for (ip, prefix) in [(V4, 0), (V6, 0)] {
                addresses.push(IpCidr::new(ip.into(), prefix)).unwrap();
            }
        });
        let sockets = SocketSet::new(Vec::new());
        Self {
            interface,
            sockets,
            wire,
            clients: Vec::new(),
            datagrams: Vec::new(),
            datagrams_refused: 0,
        }
    }

    /// An application connects; gives the client's number.
    pub(crate) fn connect(&mut self, remote: SocketAddr, port: u16) -> usize {
        let mut socket = socket();
        let local = SocketAddr::new(if remote.is_ipv4() { V4 } else { V6 }, port);
        let context = self.interface.context();
        socket.connect(context, remote, local).unwrap();
        self.add(socket, local, remote)
    }

    /// An application waits for one connection, or, when it does not listen, will refuse it; gives the client's number.
    pub(crate) fn expect(&mut self, local: SocketAddr, remote: SocketAddr, listens: bool) -> usize {
        let mut socket = socket();
        if listens {
            socket.listen(local).unwrap();
        }
        self.add(socket, local, remote)
    }

    fn add(&mut self, socket: Socket<'static>, local: SocketAddr, remote: SocketAddr) -> usize {
        self.clients.push(Client {
            handle: self.sockets.add(socket),
            local,
            remote,
            to_send: 0,
            sent: 0,
            received: 0,
            finish: false,
            reading: true,
            finished: false,
            aborted: false,
            connected: false,
            end_seen: false,
            told: None,
            seed: u64::from(local.port()),
            window: None,
        });
        self.clients.len() - 1
    }

    pub(crate) fn state(&self, client: usize) -> State {
        self.sockets.get::<Socket<'_>>(self.clients[client].handle).state()
    }

    /// The application resets its connection.
    pub(crate) fn abort(&mut self, client: usize) {
        let client = &mut self.clients[client];
        client.aborted = true;
        self.sockets.get_mut::<Socket<'_>>(client.handle).abort();
    }

    /// A packet from the engine.
    pub(crate) fn receive(&mut self, now: Duration, bytes: &[u8]) {
        let packet = Packet::parse(bytes).unwrap();
        match packet.transport() {
            Transport::Tcp(tcp) if self.is_overtaken(packet.key().unwrap().destination, &tcp) => return,
            Transport::Tcp(_) => {
                self.wire.incoming = Some(bytes.to_vec());
                self.interface
                    .poll_ingress_single(smol(now), &mut self.wire, &mut self.sockets);
            }
            Transport::Udp(udp) => {
                let key = packet.key().unwrap();
                self.datagrams
                    .push((key.source, key.destination, udp.payload().to_vec()));
            }
            Transport::Icmp => self.receive_icmp(&packet),
            Transport::Other(number) => panic!("the engine sent protocol {number}"),
        }
        self.work();
    }

    /// Whether a segment was overtaken by one with the same acknowledgement and a larger window. The engine never takes a
    /// window back, so it is old. smoltcp would believe it, close its window over bytes in flight, and never repeat them,
    /// which no kernel does; to lose the segment instead is something that a wire may do.
    fn is_overtaken(&mut self, local: SocketAddr, tcp: &Tcp<'_>) -> bool {
        let Some(client) = self.clients.iter_mut().find(|client| client.local == local) else {
            return false;
        };
        if !tcp.flags().has(Flags::ACK) || tcp.flags().has(Flags::RST) || tcp.flags().has(Flags::SYN) {
            return false;
        }
        let (acknowledgement, window) = (tcp.acknowledgement(), tcp.window());
        match client.window {
            Some((latest, largest)) if latest == acknowledgement && window < largest => return true,
            Some((latest, _)) if latest.wrapping_sub(acknowledgement).cast_signed() > 0 => {}
            _ => client.window = Some((acknowledgement, window)),
        }
        false
    }

    /// Lets applications and sockets do what they can; gives what they send.
    pub(crate) fn poll(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.work();
        if self.wire.outgoing.is_empty() {
            self.interface.poll_egress(smol(now), &mut self.wire, &mut self.sockets);
        }
        self.wire.outgoing.pop_front()
    }

    pub(crate) fn poll_at(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(smol(now), &self.sockets)?;
        Some(Duration::from_micros(u64::try_from(at.total_micros()).unwrap()).max(now + Duration::from_millis(1)))
    }

    /// RFC 5927 notwithstanding, Linux gives up a connection attempt at any ICMP error for it.
    fn receive_icmp(&mut self, packet: &Packet<'_>) {
        let icmp = &packet.bytes()[packet.ip_header().len()..];
        let told = Told::Icmp(icmp[0], icmp[1]);
        let quoted = &icmp[8..];
        let v4 = quoted[0] >> 4 == 4;
        let (number, ports) = if v4 { (quoted[9], 20) } else { (quoted[6], 40) };
        if number == 17 {
            self.datagrams_refused += 1;
            return;
        }
        let port = u16::from_be_bytes([quoted[ports], quoted[ports + 1]]);
        let client = self
            .clients
            .iter_mut()
            .find(|client| client.local.port() == port && client.remote.is_ipv4() == v4);
        let client = client.expect("an ICMP error for nobody");
        let socket = self.sockets.get_mut::<Socket<'_>>(client.handle);
        if socket.state() == State::Closed {
            // A repeated SYN was refused again.
            return;
        }
        assert_eq!(
            socket.state(),
            State::SynSent,
            "an ICMP error for a connection that was answered"
        );
        client.told = Some(told);
        socket.close();
    }

    /// Every application reads and writes what its socket allows.
    fn work(&mut self) {
        for client in &mut self.clients {
            let socket = self.sockets.get_mut::<Socket<'_>>(client.handle);
            let before = [State::SynSent, State::Closed, State::Listen, State::SynReceived];
            client.connected |= !before.contains(&socket.state()) || socket.can_recv();
            while client.reading && socket.can_recv() {
                socket
                    .recv(|bytes| {
                        for byte in &*bytes {
                            assert_eq!(*byte, pattern(client.seed ^ 1, client.received), "a wrong byte arrived");
                            client.received += 1;
                        }
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            let over = matches!(
                socket.state(),
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait
            );
            client.end_seen |= over;
            if socket.state() == State::Closed && !client.aborted && client.told.is_none() && !client.is_done() {
                client.told = Some(Told::Reset);
            }
            while client.sent < client.to_send && socket.can_send() {
                let rest = usize::try_from(client.to_send - client.sent).unwrap();
                let seed = client.seed;
                let sent = socket.send(|room| {
                    let len = room.len().min(rest);
                    for (at, byte) in (client.sent..).zip(&mut room[..len]) {
                        *byte = pattern(seed, at);
                    }
                    (len, len)
                });
                client.sent += u64::try_from(sent.unwrap()).unwrap();
            }
            // smoltcp does not see window updates in LAST-ACK, and forgets the timer of a FIN when ACKs are repeated
            // for lost data before it.
            let may_close = socket.may_send() && socket.send_queue() == 0;
            if client.finish && !client.finished && client.sent == client.to_send && may_close {
                client.finished = true;
                socket.close();
            }
        }
    }
}

impl Client {
    /// Whether both directions ended well, as far as the application can know.
    pub(crate) fn is_done(&self) -> bool {
        self.finished && self.end_seen
    }
}

fn socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_tsval_generator(Some(clock));
    socket
}

/// A constant timestamp is a legal one.
fn clock() -> u32 {
    1
}

struct Wire {
    mtu: usize,
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received, Sending<'_>)> {
        let packet = self.incoming.take()?;
        Some((Received(packet), Sending(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.tcp = Checksum::Both;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
