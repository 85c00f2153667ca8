//! A real Envoy, set up as Istio sets up its waypoints and east-west gateways, with a certificate of the mesh.

use std::path::PathBuf;

use mesh_lab::{Proc, given, wait_until};

use crate::fixture::{Machine, SOON, log_to};
use crate::lab::Lab;

/// The binary, when there is one to test with.
pub fn binary() -> Option<PathBuf> {
    given("ENVOY")
}

/// A machine with an Envoy that listens on 15008.
pub struct Envoy {
    pub machine: Machine,
    _process: Proc,
}

impl Envoy {
    /// A waypoint: it terminates CONNECT, speaks HTTP (answers get the header `x-waypoint`), and opens a tunnel of its own to
    /// `backend` for `target` there.
    pub fn waypoint(lab: &Lab, machine: Machine, backend: &str, target: &str) -> Self {
        let listeners = [
            terminate("main_internal", ""),
            internal("main_internal", &http("app")),
            internal(
                "connect_originate",
                &filter(
                    "tcp_proxy",
                    "network.tcp_proxy.v3.TcpProxy",
                    &format!("stat_prefix: originate, cluster: backend, tunneling_config: {{hostname: \"{target}\"}}"),
                ),
            ),
        ];
        let clusters = [
            internal_cluster("main_internal", "main_internal"),
            internal_cluster("app", "connect_originate"),
            tunnel_cluster("backend", backend),
        ];
        Self::start(lab, machine, &listeners, &clusters)
    }

    /// An east-west gateway: it terminates the outer CONNECT to `authority`, whose bytes it passes to the port 15008 of `backend`.
    pub fn gateway(lab: &Lab, machine: Machine, authority: &str, backend: &str) -> Self {
        let only = format!(", headers: [{{name: \":authority\", string_match: {{exact: \"{authority}\"}}}}]");
        let listeners = [terminate("forward_inner_connect", &only)];
        let clusters = [cluster(
            "forward_inner_connect",
            &socket_address(backend),
            "connect_timeout: 5s",
        )];
        Self::start(lab, machine, &listeners, &clusters)
    }

    fn start(lab: &Lab, machine: Machine, listeners: &[String], clusters: &[String]) -> Self {
        let (chain, key) = lab.certificate(&format!("spiffe://example.org/ns/shop/sa/{}", machine.name));
        for (name, text) in [("chain.pem", &chain), ("key.pem", &key), ("root.pem", &lab.root())] {
            std::fs::write(machine.dir.join(name), text).unwrap();
        }
        let config = format!(
            "bootstrap_extensions:\n- {{name: internal, typed_config: {{\"@type\": {API}bootstrap.internal_listener.v3.InternalListener}}}}\n\
             static_resources:\n  listeners:\n{}  clusters:\n{}",
            items(listeners),
            items(clusters)
        );
        let config = config.replace("DIR", machine.dir.to_str().unwrap());
        let path = machine.dir.join("envoy.yaml");
        std::fs::write(&path, config).unwrap();
        let mut command = machine.host.command(binary().unwrap());
        command
            .args(["--disable-hot-restart", "--concurrency", "1", "-c"])
            .arg(path);
        log_to(&mut command, &machine.dir.join("envoy.log"));
        let process = machine.host.spawn(&mut command);
        let envoy = Self {
            machine,
            _process: process,
        };
        wait_until(SOON, &format!("envoy to listen\n{}", envoy.log()), || {
            envoy.machine.host.sh("ss -Hltn sport = :15008").contains(":15008")
        });
        envoy
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.machine.dir.join("envoy.log")).unwrap_or_default()
    }

    /// What it wrote of the CONNECTs so far, a line each: authority, status, then the headers of HBONE.
    pub fn connects(&self) -> String {
        std::fs::read_to_string(self.machine.dir.join("connects.log")).unwrap_or_default()
    }
}

const API: &str = "type.googleapis.com/envoy.extensions.";

fn items(all: &[String]) -> String {
    all.iter().map(|one| format!("  - {one}\n")).collect()
}

fn filter(name: &str, kind: &str, fields: &str) -> String {
    format!("{{name: {name}, typed_config: {{\"@type\": {API}filters.{kind}, {fields}}}}}")
}

fn connection_manager(prefix: &str, fields: &str, route: &str) -> String {
    let router = filter(
        "envoy.filters.http.router",
        "http.router.v3.Router",
        "suppress_envoy_headers: true",
    );
    filter(
        "hcm",
        "network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: {prefix}, {fields}, http_filters: [{router}], \
             route_config: {{virtual_hosts: [{{name: all, domains: [\"*\"], {route}}}]}}"
        ),
    )
}

/// The listener of HBONE. `only` is what else a CONNECT must match, from a comma on.
fn terminate(cluster: &str, only: &str) -> String {
    let line = "%REQ(:AUTHORITY)% %RESPONSE_CODE% baggage=%REQ(BAGGAGE)% forwarded=%REQ(FORWARDED)% \
                traceparent=%REQ(TRACEPARENT)% network=%REQ(X-FORWARDED-NETWORK)% peer=%DOWNSTREAM_PEER_URI_SAN%\\n";
    let log = format!(
        "access_log: [{{name: file, typed_config: {{\"@type\": {API}access_loggers.file.v3.FileAccessLog, path: DIR/connects.log, \
         log_format: {{text_format_source: {{inline_string: \"{line}\"}}}}}}}}]"
    );
    let manager = connection_manager(
        "terminate",
        &format!(
            "codec_type: HTTP2, http2_protocol_options: {{allow_connect: true}}, upgrade_configs: [{{upgrade_type: CONNECT}}], {log}"
        ),
        &format!(
            "routes: [{{match: {{connect_matcher: {{}}{only}}}, route: {{cluster: {cluster}, \
             upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}}]"
        ),
    );
    format!(
        "{{name: connect_terminate, address: {{socket_address: {{address: 0.0.0.0, port_value: 15008}}}}, \
         filter_chains: [{{filters: [{manager}], transport_socket: {}}}]}}",
        tls("DownstreamTlsContext", "require_client_certificate: true, ")
    )
}

fn internal(name: &str, filter: &str) -> String {
    format!("{{name: {name}, internal_listener: {{}}, filter_chains: [{{filters: [{filter}]}}]}}")
}

fn http(cluster: &str) -> String {
    connection_manager(
        "waypoint",
        "codec_type: AUTO",
        &format!(
            "response_headers_to_add: [{{header: {{key: x-waypoint, value: passed}}}}], \
             routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]"
        ),
    )
}

/// TLS 1.3 with our certificate, `h2`, and peers of our trust domain, as istiod sets it up.
fn tls(context: &str, more: &str) -> String {
    format!(
        "{{name: tls, typed_config: {{\"@type\": {API}transport_sockets.tls.v3.{context}, {more}common_tls_context: {{\
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}, alpn_protocols: [h2], \
         tls_certificates: [{{certificate_chain: {{filename: DIR/chain.pem}}, private_key: {{filename: DIR/key.pem}}}}], \
         validation_context: {{trusted_ca: {{filename: DIR/root.pem}}, \
         match_typed_subject_alt_names: [{{san_type: URI, matcher: {{prefix: \"spiffe://example.org/\"}}}}]}}}}}}}}"
    )
}

fn cluster(name: &str, address: &str, more: &str) -> String {
    format!(
        "{{name: {name}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]}}, {more}}}"
    )
}

fn internal_cluster(name: &str, listener: &str) -> String {
    let address = format!("{{envoy_internal_address: {{server_listener_name: {listener}}}}}");
    cluster(name, &address, "connect_timeout: 5s")
}

fn socket_address(ip: &str) -> String {
    format!("{{socket_address: {{address: {ip}, port_value: 15008}}}}")
}

fn tunnel_cluster(name: &str, ip: &str) -> String {
    let http2 = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\
                 \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
                 explicit_http_config: {http2_protocol_options: {allow_connect: true}}}}";
    let tls = tls("UpstreamTlsContext", "");
    cluster(name, &socket_address(ip), &format!("{http2}, transport_socket: {tls}"))
}
