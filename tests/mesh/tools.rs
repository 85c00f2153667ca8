//! What tests do on a machine of the lab: small servers, names, and what an agent could leave behind.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_lab::{Host, wait_until};

use crate::fixture::SOON;

/// A server on a thread of this process; it stops when dropped.
pub struct Server(Arc<AtomicBool>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What this test does on a [`Host`].
pub trait Tools {
    /// Gives each connection to a thread of its own, which is on this machine.
    fn tcp_server(&self, address: &str, each: impl Fn(TcpStream) + Clone + Send + 'static) -> Server;
    /// Sends back what each connection sends.
    fn echo_server(&self, address: &str) -> Server;
    /// Answers A queries for `name` with `address` over UDP and TCP, and everything else with NXDOMAIN or nothing.
    fn dns_server(&self, bind: &str, name: &str, address: &str) -> Server;
    /// Sends back each datagram, to whom it came from.
    fn udp_echo(&self, address: &str) -> Server;
    /// The first IPv4 address of a name, by the machine's resolver.
    fn resolve(&self, name: &str) -> String;
    /// The first IPv6 address.
    fn resolve6(&self, name: &str) -> String;
    /// The A record of a name over TCP, or nothing.
    fn resolve_tcp(&self, name: &str, server: &str) -> String;
    /// Rules, routes, links and tables: what an agent could leave behind.
    fn kernel_state(&self) -> String;
    fn connect(&self, to: &str) -> std::io::Result<TcpStream>;
}

impl Tools for Host {
    fn tcp_server(&self, address: &str, each: impl Fn(TcpStream) + Clone + Send + 'static) -> Server {
        // Threads are where the one is that starts them.
        self.enter(|| {
            let listener = TcpListener::bind(address).unwrap();
            listener.set_nonblocking(true).unwrap();
            serve(move || match listener.accept() {
                Ok((stream, _)) => {
                    let each = each.clone();
                    stream.set_nonblocking(false).unwrap();
                    let thread = std::thread::Builder::new().stack_size(1 << 17);
                    thread.spawn(move || each(stream)).unwrap();
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
            })
        })
    }

    fn echo_server(&self, address: &str) -> Server {
        self.tcp_server(address, echo)
    }

    fn dns_server(&self, bind: &str, name: &str, address: &str) -> Server {
        let (udp, tcp) = self.enter(|| (UdpSocket::bind(bind).unwrap(), TcpListener::bind(bind).unwrap()));
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (name, address) = (encode(name), address.parse::<std::net::Ipv4Addr>().unwrap().octets());
        serve(move || {
            let mut buffer = [0; 2048];
            if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&answer(&buffer[..length], &name, address), from);
            }
            if let Ok((mut stream, _)) = tcp.accept() {
                stream.set_nonblocking(false).unwrap();
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_ok() {
                    let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                    let _ = stream.read_exact(&mut query);
                    let reply = answer(&query, &name, address);
                    let _ = stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat());
                }
            }
        })
    }

    fn udp_echo(&self, address: &str) -> Server {
        let socket = self.enter(|| UdpSocket::bind(address).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut buffer = vec![0; 65_535];
        serve(move || {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        })
    }

    fn resolve(&self, name: &str) -> String {
        resolve(self, "ahostsv4", name)
    }

    fn resolve6(&self, name: &str) -> String {
        resolve(self, "ahostsv6", name)
    }

    fn resolve_tcp(&self, name: &str, server: &str) -> String {
        let mut stream = self.connect(server).unwrap();
        let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &encode(name), &[0, 1, 0, 1]].concat();
        stream
            .write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())
            .unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        match answer.last_chunk::<4>() {
            Some(address) if answer[7] > 0 => std::net::Ipv4Addr::from(*address).to_string(),
            _ => String::new(),
        }
    }

    fn kernel_state(&self) -> String {
        // Before, the kernel adds the routes of an address that it still tries.
        wait_until(SOON, "addresses to be tried", || {
            self.ip("-6 addr show tentative").is_empty()
        });
        self.sh(
            "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | sed 's/expires [0-9]*sec//'; \
             ip -o link | cut -d: -f2; nft list ruleset",
        )
    }

    fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: std::net::SocketAddr = to.parse().map_err(std::io::Error::other)?;
        self.enter(|| {
            let stream = TcpStream::connect_timeout(&to, SOON)?;
            stream.set_read_timeout(Some(SOON))?;
            Ok(stream)
        })
    }
}

fn resolve(host: &Host, family: &str, name: &str) -> String {
    let mut address = String::new();
    wait_until(SOON, &format!("{name} to resolve"), || {
        let output = host.command("getent").args([family, name]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        address = text.split_whitespace().next().unwrap_or_default().to_owned();
        !address.is_empty()
    });
    address
}

fn serve(mut once: impl FnMut() + Send + 'static) -> Server {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            once();
        }
    });
    Server(stop)
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn encode(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

fn answer(query: &[u8], name: &[u8], address: [u8; 4]) -> Vec<u8> {
    let question_end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
    let question = &query[12..question_end.min(query.len())];
    let known = question.len() > 4 && question[..question.len() - 4].eq_ignore_ascii_case(name);
    let answers = u8::from(known && question.ends_with(&[0, 1, 0, 1]));
    let code = if known { 0 } else { 3 };
    let mut out = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
    out.extend_from_slice(question);
    if answers == 1 {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&address);
    }
    out
}

/// The library that changes what a program takes for the time.
pub fn faketime() -> PathBuf {
    let found = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ]
    .iter()
    .map(|dir| Path::new(dir).join("faketime/libfaketime.so.1"))
    .find(|path| path.exists());
    found.expect("libfaketime: install the package faketime")
}
