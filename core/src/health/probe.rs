//! A probe in Istio's own form, and what is wrong with one.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::seconds;

/// How an application is asked whether it is ready: Istio's `ReadinessProbe`. A number that is 0 stands for its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// Seconds before the first one; 0 by default.
    #[serde(skip_serializing_if = "is_zero")]
    pub initial_delay_seconds: u32,
    /// Seconds for an answer; 1 by default.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout_seconds: u32,
    /// Seconds between two; 10 by default.
    #[serde(skip_serializing_if = "is_zero")]
    pub period_seconds: u32,
    /// Successes in a row that make it healthy; 1 by default.
    #[serde(skip_serializing_if = "is_zero")]
    pub success_threshold: u32,
    /// Failures in a row that make it unhealthy; 1 by default.
    #[serde(skip_serializing_if = "is_zero")]
    pub failure_threshold: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_get: Option<HttpGet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_socket: Option<TcpSocket>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
}

/// A GET that must be answered with 200 to 399.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpGet {
    /// `HTTP` (the default) or `HTTPS`; certificates are not verified.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub scheme: String,
    /// An address of the machine, or `localhost` (the default).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// `/` by default.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    pub port: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http_headers: Vec<Header>,
}

/// A header of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Header {
    pub name: String,
    pub value: String,
}

/// A connection that must be accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TcpSocket {
    /// As of [`HttpGet::host`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    pub port: u32,
}

/// A call of `grpc.health.v1.Health/Check` on the loopback that must be answered with `SERVING`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    pub port: u32,
    /// Empty asks for the server as a whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// A command that must end with 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    pub command: Vec<String>,
}

/// The one thing that a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method<'a> {
    Http(&'a HttpGet),
    Tcp(&'a TcpSocket),
    Grpc(&'a Grpc),
    Exec(&'a Exec),
}

/// Something wrong with a probe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Fault {
    /// Path within the probe, such as `httpGet.port`; empty for the probe as a whole.
    pub field: &'static str,
    pub message: String,
}

impl Probe {
    /// Before the first one.
    pub fn initial_delay(&self) -> Duration {
        Duration::from_secs(u64::from(self.initial_delay_seconds))
    }

    /// From one to the next.
    pub fn period(&self) -> Duration {
        seconds(self.period_seconds, 10)
    }

    /// For an answer.
    pub fn timeout(&self) -> Duration {
        seconds(self.timeout_seconds, 1)
    }

    /// Successes in a row that make it healthy.
    pub fn success_threshold(&self) -> u32 {
        self.success_threshold.max(1)
    }

    /// Failures in a row that make it unhealthy.
    pub fn failure_threshold(&self) -> u32 {
        self.failure_threshold.max(1)
    }

    /// What it does; nothing when it names no method (which [`Probe::check`] refuses).
    pub fn method(&self) -> Option<Method<'_>> {
        let Self {
            http_get,
            tcp_socket,
            grpc,
            exec,
            ..
        } = self;
        let network = http_get.as_ref().map(Method::Http);
        let network = network.or_else(|| tcp_socket.as_ref().map(Method::Tcp));
        let network = network.or_else(|| grpc.as_ref().map(Method::Grpc));
        network.or_else(|| exec.as_ref().map(Method::Exec))
    }

    /// What it does, for people.
    pub fn describe(&self) -> String {
        let host = |host: &str| {
            if host.is_empty() {
                LOCALHOST.to_owned()
            } else {
                host.to_owned()
            }
        };
        match self.method() {
            Some(Method::Http(get)) => format!(
                "{}://{}:{}{}",
                get.scheme().to_ascii_lowercase(),
                host(&get.host),
                get.port,
                get.path()
            ),
            Some(Method::Tcp(tcp)) => format!("tcp {}:{}", host(&tcp.host), tcp.port),
            Some(Method::Grpc(grpc)) => format!("grpc {LOCALHOST}:{} {}", grpc.port, grpc.service),
            Some(Method::Exec(exec)) => format!("exec {}", exec.command.join(" ")),
            None => "nothing".to_owned(),
        }
    }

    /// Everything that is wrong with it.
    pub fn check(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let numbers = [
            ("initialDelaySeconds", self.initial_delay_seconds),
            ("timeoutSeconds", self.timeout_seconds),
            ("periodSeconds", self.period_seconds),
            ("successThreshold", self.success_threshold),
            ("failureThreshold", self.failure_threshold),
        ];
        for (field, number) in numbers.into_iter().filter(|(_, number)| *number > LARGEST) {
            faults.push(fault(field, format!("{number} is more than {LARGEST}")));
        }
        let given = [
            self.http_get.is_some(),
            self.tcp_socket.is_some(),
            self.grpc.is_some(),
            self.exec.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let message = "a probe has exactly one of httpGet, tcpSocket, grpc and exec";
            faults.push(fault("", message.to_owned()));
        }
        if let Some(get) = &self.http_get {
            get.check(&mut faults);
        }
        if let Some(tcp) = &self.tcp_socket {
            host("tcpSocket.host", &tcp.host, &mut faults);
            port("tcpSocket.port", tcp.port, &mut faults);
        }
        if let Some(grpc) = &self.grpc {
            port("grpc.port", grpc.port, &mut faults);
            if grpc.service.len() > TEXT {
                faults.push(fault("grpc.service", format!("it has more than {TEXT} bytes")));
            }
        }
        if let Some(exec) = &self.exec {
            exec.check(&mut faults);
        }
        faults
    }
}

impl HttpGet {
    /// `HTTP` or `HTTPS`.
    pub fn scheme(&self) -> &str {
        if self.scheme.eq_ignore_ascii_case("https") {
            "HTTPS"
        } else {
            "HTTP"
        }
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        if self.path.is_empty() { "/" } else { &self.path }
    }

    fn check(&self, faults: &mut Vec<Fault>) {
        host("httpGet.host", &self.host, faults);
        port("httpGet.port", self.port, faults);
        if !["", "http", "https"].contains(&self.scheme.to_ascii_lowercase().as_str()) {
            let message = format!("{:?} is neither HTTP nor HTTPS", self.scheme);
            faults.push(fault("httpGet.scheme", message));
        }
        let path = self.path();
        if !path.starts_with('/') || path.len() > PATH || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = format!("it must begin with / and be of at most {PATH} visible ASCII characters");
            faults.push(fault("httpGet.path", message));
        }
        let fits = |header: &Header| {
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            let name = &header.name;
            !name.is_empty()
                && name.len() <= TEXT
                && name.bytes().all(token)
                && header.value.len() <= PATH
                && header
                    .value
                    .bytes()
                    .all(|byte| byte == b'\t' || matches!(byte, 0x20..=0x7e))
        };
        if self.http_headers.len() > HEADERS || !self.http_headers.iter().all(fits) {
            let message = format!("there may be {HEADERS}, each a name and a value of visible ASCII characters");
            faults.push(fault("httpGet.httpHeaders", message));
        }
    }
}

impl Exec {
    fn check(&self, faults: &mut Vec<Fault>) {
        let command = &self.command;
        if !command.first().is_some_and(|program| program.starts_with('/')) {
            let message = "the first part must be the absolute path of a program: there is no PATH, and no shell";
            faults.push(fault("exec.command", message.to_owned()));
        }
        let fits = |part: &String| part.len() <= PATH && !part.contains('\0');
        if command.len() > PARTS || !command.iter().all(fits) {
            let message = format!("there may be {PARTS} parts of at most {PATH} bytes");
            faults.push(fault("exec.command", message));
        }
    }
}

fn fault(field: &'static str, message: String) -> Fault {
    Fault { field, message }
}

fn port(field: &'static str, port: u32, faults: &mut Vec<Fault>) {
    if !(1..=65_535).contains(&port) {
        faults.push(fault(field, format!("{port} is not a port (1 to 65535)")));
    }
}

/// A probe is of the machine itself; it must not be a way to reach others through it.
fn host(field: &'static str, host: &str, faults: &mut Vec<Fault>) {
    if !host.is_empty() && host != LOCALHOST && host.parse::<IpAddr>().is_err() {
        let message = format!("{host:?} is neither {LOCALHOST} nor an IP address (of the machine itself)");
        faults.push(fault(field, message));
    }
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The host that a probe asks by default: 127.0.0.1, then ::1.
pub const LOCALHOST: &str = "localhost";
/// Bounds on what a control plane may ask for.
const LARGEST: u32 = 86_400;
const TEXT: usize = 253;
const PATH: usize = 2048;
const HEADERS: usize = 32;
const PARTS: usize = 64;
