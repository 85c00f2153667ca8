//! A real ztunnel on a machine of the lab, with the capture that Istio's CNI would set up for it.

use std::path::PathBuf;

use mesh_lab::{Proc, given, wait_until};

use crate::fixture::{Machine, Mesh, SOON, log_to};

/// What ztunnel marks its own tunnels' packets with, so that they are not captured again. Its calls to the control plane have no
/// mark.
const MARK: u32 = 1337;

/// The binary, when there is one to test with.
pub fn binary() -> Option<PathBuf> {
    given("ZTUNNEL")
}

/// One workload's own ztunnel (`PROXY_MODE=dedicated`).
pub struct Ztunnel {
    pub machine: Machine,
    process: Option<Proc>,
    environment: Vec<(String, String)>,
}

impl Ztunnel {
    /// A machine whose traffic ztunnel will carry as `namespace/name/account`, with this bearer token. It is not started yet.
    pub fn new(mesh: &mut Mesh, workload: &str, token: &str) -> Self {
        let parts: Vec<&str> = workload.split('/').collect();
        let [namespace, name, _] = parts[..] else {
            panic!("{workload} is not NAMESPACE/NAME/ACCOUNT")
        };
        let machine = mesh.machine(name);
        let root = machine.dir.join("root-cert.pem");
        std::fs::write(&root, mesh.ctl(&["ca", "root"])).unwrap();
        let root = root.display().to_string();
        let secret = machine.dir.join("token");
        std::fs::write(&secret, token).unwrap();
        let mark = MARK.to_string();
        let secret = secret.display().to_string();
        let environment = [
            ("PROXY_MODE", "dedicated"),
            ("PROXY_WORKLOAD_INFO", workload),
            ("CA_ADDRESS", "https://10.77.0.1:15012"),
            ("XDS_ADDRESS", "https://10.77.0.1:15012"),
            ("CA_ROOT_CA", &root),
            ("XDS_ROOT_CA", &root),
            ("AUTH_TOKEN", &secret),
            ("POD_NAME", name),
            ("POD_NAMESPACE", namespace),
            ("INSTANCE_IP", &machine.ip4),
            ("PACKET_MARK", &mark),
            ("ENABLE_ORIG_SRC", "false"),
            ("ISTIO_META_DNS_CAPTURE", "false"),
            ("ZTUNNEL_WORKER_THREADS", "1"),
            ("RUST_LOG", "info"),
        ];
        let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        Self {
            machine,
            process: None,
            environment,
        }
    }

    /// One more variable of its environment.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, captures the machine's traffic, and waits until it says that it is ready and knows its own workload.
    pub fn start(mut self) -> Self {
        self.launch();
        self.wait_ready();
        self
    }

    pub fn launch(&mut self) {
        let mut command = self.machine.host.command(binary().unwrap());
        command.env_clear().envs(self.environment.iter().cloned());
        log_to(&mut command, &self.machine.dir.join("ztunnel.log"));
        self.process = Some(self.machine.host.spawn(&mut command));
        self.machine.host.nft(&format!(
            "table inet ztunnel {{\n\
             chain output {{ type nat hook output priority -100;\n\
             tcp dport != 15012 oifname != lo meta mark != {MARK} redirect to :15001; }}\n\
             chain prerouting {{ type nat hook prerouting priority -100;\n\
             tcp dport != {{ 15008, 15020, 15021 }} redirect to :15006; }}\n}}"
        ));
    }

    pub fn wait_ready(&self) {
        wait_until(
            SOON,
            &format!("{} to be ready\n{}", self.machine.name, self.log()),
            || {
                self.machine
                    .curl(&["-f", "http://127.0.0.1:15021/healthz/ready"])
                    .status
                    .success()
            },
        );
    }

    /// What it knows: the answer of its admin interface.
    pub fn dump(&self) -> serde_json::Value {
        let text = self.machine.get("http://127.0.0.1:15000/config_dump");
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until what it knows satisfies `wanted`, and gives it.
    pub fn wait_dump(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let mut dump = serde_json::Value::Null;
        wait_until(SOON, &format!("{} to know {what}", self.machine.name), || {
            dump = self.dump();
            wanted(&dump)
        });
        dump
    }

    /// Makes it fetch its certificate, which it does when it is first needed, and gives what the dump says of it then.
    pub fn certificates(&self, mesh: &Mesh) -> String {
        let listener = format!("https://{}:15008/", self.machine.ip4);
        let mut shown = String::new();
        wait_until(SOON, &format!("{} to have a certificate", self.machine.name), || {
            // It has no certificate of ours, so that it fails when the handshake is over.
            let _ = mesh
                .control
                .command("curl")
                .args(["-sk", "--max-time", "3", &listener])
                .output();
            shown = self.dump()["certificates"].to_string();
            shown.contains("Available")
        });
        shown
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.machine.dir.join("ztunnel.log")).unwrap_or_default()
    }

    /// Waits until a line of its log holds all of these.
    pub fn wait_log(&self, parts: &[&str]) {
        wait_until(SOON, &format!("{} to log {parts:?}", self.machine.name), || {
            self.log()
                .lines()
                .any(|line| parts.iter().all(|part| line.contains(part)))
        });
    }
}

/// The entry in one of the dump's lists whose `name` is this.
pub fn named<'a>(dump: &'a serde_json::Value, list: &str, name: &str) -> Option<&'a serde_json::Value> {
    dump[list].as_array()?.iter().find(|one| one["name"] == name)
}

/// A WorkloadEntry as an operator writes it for a machine with a ztunnel.
pub fn entry(namespace: &str, name: &str, account: &str, address: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{app: {account}, networking.istio.io/tunnel: http}}\nspec:\n  address: {address}\n  serviceAccount: {account}\n  ports: {{http: 8080}}\n"
    )
}
