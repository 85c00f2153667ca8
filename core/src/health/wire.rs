//! A probe as `mesh.v1` carries it.

use mesh_proto::mesh::{self as proto, probe::Method as ProtoMethod};

use super::{Exec, Fault, Grpc, Header, HttpGet, Method, Probe, TcpSocket};

impl From<&Probe> for proto::Probe {
    fn from(probe: &Probe) -> Self {
        let method = probe.method().map(|method| match method {
            Method::Http(get) => ProtoMethod::Http(proto::HttpProbe {
                scheme: get.scheme.clone(),
                host: get.host.clone(),
                path: get.path.clone(),
                port: get.port,
                headers: get
                    .http_headers
                    .iter()
                    .map(|header| proto::http_probe::Header {
                        name: header.name.clone(),
                        value: header.value.clone(),
                    })
                    .collect(),
            }),
            Method::Tcp(tcp) => ProtoMethod::Tcp(proto::TcpProbe {
                host: tcp.host.clone(),
                port: tcp.port,
            }),
            Method::Grpc(grpc) => ProtoMethod::Grpc(proto::GrpcProbe {
                port: grpc.port,
                service: grpc.service.clone(),
            }),
            Method::Exec(exec) => ProtoMethod::Exec(proto::ExecProbe {
                command: exec.command.clone(),
            }),
        });
        Self {
            initial_delay_seconds: probe.initial_delay_seconds,
            period_seconds: probe.period_seconds,
            timeout_seconds: probe.timeout_seconds,
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
            method,
        }
    }
}

impl TryFrom<proto::Probe> for Probe {
    type Error = Fault;

    fn try_from(from: proto::Probe) -> Result<Self, Fault> {
        let mut probe = Self {
            initial_delay_seconds: from.initial_delay_seconds,
            timeout_seconds: from.timeout_seconds,
            period_seconds: from.period_seconds,
            success_threshold: from.success_threshold,
            failure_threshold: from.failure_threshold,
            ..Self::default()
        };
        match from.method {
            Some(ProtoMethod::Http(get)) => {
                let header = |header: proto::http_probe::Header| Header {
                    name: header.name,
                    value: header.value,
                };
                probe.http_get = Some(HttpGet {
                    scheme: get.scheme,
                    host: get.host,
                    path: get.path,
                    port: get.port,
                    http_headers: get.headers.into_iter().map(header).collect(),
                });
            }
            Some(ProtoMethod::Tcp(proto::TcpProbe { host, port })) => probe.tcp_socket = Some(TcpSocket { host, port }),
            Some(ProtoMethod::Grpc(proto::GrpcProbe { port, service })) => probe.grpc = Some(Grpc { port, service }),
            Some(ProtoMethod::Exec(proto::ExecProbe { command })) => probe.exec = Some(Exec { command }),
            None => {}
        }
        match probe.check().into_iter().next() {
            None => Ok(probe),
            Some(fault) => Err(fault),
        }
    }
}
