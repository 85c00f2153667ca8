//! The machines themselves: a wire that is recorded, a resolv.conf of one's own, and processes that end.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use mesh_lab::{Host, Lan, Sniffer, wait_until};

#[test]
fn what_a_wire_carries_is_recorded() {
    let lan = Lan::new();
    let (one, two) = (lan.host("one"), lan.host("two"));
    let sniffer = Sniffer::start(&one, "eth0", "tcp port 80");
    let listener = two.enter(|| TcpListener::bind("10.77.0.2:80").unwrap());
    let mut client = one.enter(|| TcpStream::connect("10.77.0.2:80").unwrap());
    client.write_all(b"in the clear").unwrap();
    listener.accept().unwrap().0.read_exact(&mut [0; 12]).unwrap();
    wait_until(Duration::from_secs(10), "the packet", || {
        Sniffer::contains(&sniffer.bytes(), b"in the clear")
    });
    assert!(!Sniffer::contains(&sniffer.stop(), b"something else"));
}

#[test]
fn files_are_the_machine_s_own() {
    let host = Host::new("host");
    std::fs::write(host.resolv_conf(), "nameserver 192.0.2.53\n").unwrap();
    assert_eq!(host.sh("cat /etc/resolv.conf"), "nameserver 192.0.2.53\n");
    host.sh("touch /run/only-here");
    assert!(!std::path::Path::new("/run/only-here").exists());
    assert!(host.enter(|| std::path::Path::new("/run/only-here").exists()));
}

#[test]
fn packets_are_lost_on_demand() {
    let lan = Lan::new();
    let (one, _two) = (lan.host("one"), lan.host("two"));
    one.loss("eth0", 100);
    assert!(one.try_sh("ping -c 1 -W 1 10.77.0.2").is_err());
    one.loss("eth0", 20);
    one.loss("eth0", 0);
    one.sh("ping -c 1 -W 5 10.77.0.2");
}

#[test]
fn a_process_ends_when_told() {
    let host = Host::new("host");
    let mut process = host.spawn(host.command("sleep").arg("1000"));
    assert!(!process.stop(Duration::from_secs(10)).success());
}
