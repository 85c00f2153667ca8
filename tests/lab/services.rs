//! Small servers on test machines: a TCP echo, and a DNS server that knows one name.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Host;

/// A server on a thread of this process; it stops when dropped.
pub struct Server(Arc<AtomicBool>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Host {
    /// Sends back what each connection sends.
    pub fn echo_server(&self, address: &str) -> Server {
        let listener = self.enter(|| TcpListener::bind(address).unwrap());
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(std::thread::Builder::new().stack_size(1 << 17).spawn(move || echo(stream))),
                    Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
                }
            }
        });
        Server(stop)
    }

    /// Answers A queries for `name` with `address` over UDP and TCP, and everything else with NXDOMAIN.
    pub fn dns_server(&self, bind: &str, name: &str, address: &str) -> Server {
        let (udp, tcp) = self.enter(|| (UdpSocket::bind(bind).unwrap(), TcpListener::bind(bind).unwrap()));
        udp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (name, address) = (encode(name), address.parse::<std::net::Ipv4Addr>().unwrap().octets());
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
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
            }
        });
        Server(stop)
    }

    /// Asks a server for the A record of a name over TCP; the address, or nothing.
    pub fn resolve_tcp(&self, name: &str, server: &str) -> String {
        self.enter(|| {
            let mut stream = std::net::TcpStream::connect_timeout(&server.parse().unwrap(), super::SOON).unwrap();
            stream.set_read_timeout(Some(super::SOON)).unwrap();
            let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &encode(name), &[0, 1, 0, 1]].concat();
            stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            match answer.last_chunk::<4>() {
                Some(address) if answer[7] > 0 => std::net::Ipv4Addr::from(*address).to_string(),
                _ => String::new(),
            }
        })
    }
}

fn echo(mut stream: std::net::TcpStream) {
    stream.set_nonblocking(false).unwrap();
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
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let answers = u8::from(known && is_a);
    let code = if known { 0 } else { 3 };
    let mut out = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
    out.extend_from_slice(question);
    if answers == 1 {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&address);
    }
    out
}
