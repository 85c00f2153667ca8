//! A whole mesh for a test: mesh-control and machines, each with its own network and mount namespace, on one bridge.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::time::Duration;

use mesh_lab::{Host, Lan, Proc, Sniffer, wait_until};

/// How long anything that should happen may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// The control plane and the wire.
pub struct Mesh {
    pub lan: Lan,
    pub control: Host,
    control_process: Option<Proc>,
    dir: tempfile::TempDir,
}

/// One machine, joined or not.
pub struct Machine {
    pub host: Host,
    pub name: String,
    pub ip4: String,
    pub ip6: String,
    pub dir: PathBuf,
    agent: Option<Proc>,
}

impl Mesh {
    /// A running control plane with the groups `shop/web`, `shop/orders` and `other/guest`.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with more lines in its configuration.
    pub fn start_with(config: &str) -> Self {
        // MESH_KEEP=1 leaves logs and state behind, for a look.
        let mut dir = tempfile::Builder::new().prefix("mesh-test").tempdir().unwrap();
        dir.disable_cleanup(std::env::var_os("MESH_KEEP").is_some());
        let lan = Lan::new();
        let control = lan.host("control");
        let text = format!(
            "data_dir = {:?}\nrun_dir = {:?}\nlisten = \"0.0.0.0:15012\"\naddresses = [\"10.77.0.1:15012\"]\ngrace_seconds = 2\n{config}\n",
            dir.path().join("data"),
            dir.path().join("run")
        );
        std::fs::write(dir.path().join("control.toml"), text).unwrap();
        let mut mesh = Self {
            lan,
            control,
            control_process: None,
            dir,
        };
        mesh.start_control();
        mesh.apply(GROUPS);
        mesh
    }

    pub fn start_control(&mut self) {
        let config = self.dir.path().join("control.toml");
        let mut command = self.control.command(binary("mesh-control"));
        command.arg("serve").arg("--config").arg(config);
        log_to(&mut command, &self.dir.path().join("control.log"));
        self.control_process = Some(self.control.spawn(&mut command));
        wait_until(SOON, "mesh-control to serve", || {
            self.try_ctl(&["ca", "status"]).status.success()
        });
    }

    /// SIGKILL.
    pub fn kill_control(&mut self) {
        self.control_process = None;
    }

    pub fn data_dir(&self) -> String {
        self.dir.path().join("data").display().to_string()
    }

    pub fn control_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("control.log")).unwrap_or_default()
    }

    /// Runs meshctl as an operator on the control plane's machine.
    pub fn try_ctl(&self, args: &[&str]) -> Output {
        self.ctl_command(args).output().unwrap()
    }

    fn ctl_command(&self, args: &[&str]) -> Command {
        let socket = self.dir.path().join("run/control.sock");
        let mut command = self.control.command(binary("meshctl"));
        command
            .arg("--server")
            .arg(format!("unix://{}", socket.display()))
            .args(args);
        command
    }

    /// The same, which must succeed; gives what it printed.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = self.try_ctl(args);
        assert!(output.status.success(), "meshctl {args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ctl_json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ctl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    pub fn apply(&self, yaml: &str) {
        let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        std::fs::write(file.path(), yaml).unwrap();
        self.ctl(&["apply", "-f", file.path().to_str().unwrap()]);
    }

    pub fn token(&self, group: &str) -> String {
        self.ctl(&["token", "create", "--group", group]).trim().to_owned()
    }

    /// A machine on the bridge, not joined.
    pub fn machine(&mut self, name: &str) -> Machine {
        Machine::attached(&self.lan, self.dir.path(), name)
    }

    /// A machine of `group` whose agent runs and is ready.
    pub fn member(&mut self, name: &str, group: &str) -> Machine {
        let mut machine = self.machine(name);
        machine.join(&self.token(group));
        machine.start();
        machine.wait_ready();
        machine
    }
}

impl Mesh {
    /// Everything that crosses the switch, until it is stopped.
    pub fn sniff(&self) -> Sniffer {
        Sniffer::start(self.lan.switch(), "br0", "")
    }
}

/// Whether recorded bytes hold these.
pub fn saw(recorded: &[u8], needle: &[u8]) -> bool {
    Sniffer::contains(recorded, needle)
}

impl Machine {
    /// On this bridge, with a directory of its own below `dir`.
    pub fn attached(lan: &Lan, dir: &Path, name: &str) -> Self {
        let host = Host::new(name);
        let (ip4, ip6) = lan.attach(&host);
        let dir = dir.join(format!("{name}-{ip4}"));
        std::fs::create_dir_all(dir.join("etc")).unwrap();
        let machine = Self {
            host,
            name: name.into(),
            ip4: ip4.to_string(),
            ip6: ip6.to_string(),
            dir,
            agent: None,
        };
        machine.configure("");
        machine.resolv_conf("nameserver 100.64.100.53\n");
        machine
    }

    /// Whom this machine asks for names.
    pub fn resolv_conf(&self, text: &str) {
        std::fs::write(self.host.resolv_conf(), text).unwrap();
    }

    /// Writes agent.toml, with more lines.
    pub fn configure(&self, more: &str) {
        let text = format!(
            "[paths]\nstate = {:?}\nrun = {:?}\n[log]\nlevel = \"info,mesh_agent=debug,mesh_core=debug\"\n{more}\n",
            self.dir.join("state"),
            self.dir.join("run"),
        );
        std::fs::write(self.dir.join("etc/agent.toml"), text).unwrap();
    }

    pub fn agent_command(&self, args: &[&str]) -> Command {
        let mut command = self.host.command(binary("mesh-agent"));
        command.args(args).arg("--config").arg(self.dir.join("etc/agent.toml"));
        command
    }

    pub fn try_agent(&self, args: &[&str]) -> Output {
        self.agent_command(args).output().unwrap()
    }

    /// `mesh-agent join` with the token on standard input.
    pub fn try_join(&self, token: &str) -> Output {
        use std::io::Write;
        let mut child = self
            .agent_command(&["join"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    pub fn join(&self, token: &str) {
        let output = self.try_join(token);
        assert!(output.status.success(), "{}: join: {}", self.name, text(&output));
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// With this in its environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = self.agent_command(&["run"]);
        command.envs(environment.iter().copied());
        log_to(&mut command, &self.dir.join("agent.log"));
        self.agent = Some(self.host.spawn(&mut command));
    }

    /// As the unit has it: a user of its own, the one capability, and the device.
    pub fn start_as_user(&mut self) {
        self.host
            .sh("mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200");
        let (dir, above) = (self.dir.display(), self.dir.parent().unwrap().display());
        self.host.sh(&format!("chmod a+rx {above} && chown -R 4711:4711 {dir}"));
        let mut unit = self.host.command("setpriv");
        unit.args([
            "--reuid=4711",
            "--regid=4711",
            "--clear-groups",
            "--bounding-set=-all,+net_admin",
        ])
        .args(["--inh-caps=+net_admin", "--ambient-caps=+net_admin"]);
        let own = self.agent_command(&["run"]);
        unit.arg(own.get_program()).args(own.get_args());
        log_to(&mut unit, &self.dir.join("agent.log"));
        self.agent = Some(self.host.spawn(&mut unit));
    }

    /// SIGKILL, and gone.
    pub fn kill(&mut self) {
        self.agent = None;
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        let Some(mut agent) = self.agent.take() else { return };
        agent.stop(SOON);
    }

    pub fn wait_ready(&self) {
        wait_until(SOON, &format!("{} to be ready", self.name), || {
            let status = self.status();
            status["state"] == "member"
                && status["own_record"]["present"] == true
                && status["control"]["connected"] == true
        });
    }

    /// `status -o json`, or null while nothing answers.
    pub fn status(&self) -> serde_json::Value {
        let output = self.try_agent(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// Waits until the agent's log holds all of these in one line.
    pub fn wait_log(&self, parts: &[&str]) -> String {
        let mut found = None;
        wait_until(SOON, &format!("{} to log {parts:?}", self.name), || {
            found = self
                .log()
                .lines()
                .find(|line| parts.iter().all(|part| line.contains(part)))
                .map(str::to_owned);
            found.is_some()
        });
        found.unwrap()
    }

    pub fn curl(&self, args: &[&str]) -> Output {
        let mut command = self.host.command("curl");
        command.args(["-sS", "--max-time", "10", "--noproxy", "*"]).args(args);
        command.output().unwrap()
    }

    /// The body that a GET gave; it must succeed.
    pub fn get(&self, url: &str) -> String {
        let output = self.curl(&["-f", url]);
        assert!(
            output.status.success(),
            "{}: GET {url}: {}\n{}",
            self.name,
            text(&output),
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a GET succeeds.
    pub fn wait_get(&self, url: &str) -> String {
        let mut body = String::new();
        wait_until(SOON, &format!("{} to get {url}", self.name), || {
            let output = self.curl(&["-f", "--max-time", "3", url]);
            body = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success()
        });
        body
    }

    /// A real nginx on this machine that answers with `text`, and serves files below `dir/www`.
    pub fn nginx(&self, port: u16, answer: &str) -> Proc {
        let dir = self.dir.join(format!("nginx-{port}"));
        std::fs::create_dir_all(dir.join("www")).unwrap();
        std::fs::write(dir.join("www/index.html"), answer).unwrap();
        let root = dir.display();
        let conf = format!(
            "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log; worker_processes 1;\nevents {{ worker_connections 8000; }}\nhttp {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n server {{ listen {port} backlog=4096; listen [::]:{port} backlog=4096; root {root}/www; }} }}\n"
        );
        std::fs::write(dir.join("nginx.conf"), conf).unwrap();
        // One process, which holds nothing of ours: a worker would outlive its killed master.
        let mut command = self.host.command("nginx");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .arg("-c")
            .arg(dir.join("nginx.conf"))
            .arg("-e")
            .arg(dir.join("error.log"));
        let process = self.host.spawn(&mut command);
        let probe = format!("http://127.0.0.1:{port}/");
        wait_until(SOON, "nginx to serve", || self.curl(&["-f", &probe]).status.success());
        process
    }

    /// Where nginx on `port` serves files from.
    pub fn www(&self, port: u16) -> PathBuf {
        self.dir.join(format!("nginx-{port}/www"))
    }
}

/// Standard output and error of a finished command, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn log_to(command: &mut Command, path: &Path) {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    command
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .stdin(Stdio::null());
}

/// A binary of the workspace. Cargo builds only the root package's for this test, so the others are built here, once.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let agent = Path::new(env!("CARGO_BIN_EXE_mesh-agent"));
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "-p", "mesh-control", "--bins"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if agent.components().any(|part| part.as_os_str() == "release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "building mesh-control failed");
    });
    agent.with_file_name(name)
}

pub const GROUPS: &str = r#"
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: web, namespace: shop}
spec:
  metadata: {labels: {app: web}}
  template: {serviceAccount: web}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: orders, namespace: shop}
spec:
  metadata: {labels: {app: orders}}
  template: {serviceAccount: orders, ports: {http: 8080}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: guest, namespace: other}
spec:
  metadata: {labels: {app: guest}}
  template: {serviceAccount: guest}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: orders, namespace: shop}
spec:
  hosts: [orders.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 80, name: http, protocol: HTTP, targetPort: 8080}
  - {number: 9999, name: tcp-closed, protocol: TCP}
  workloadSelector: {labels: {app: orders}}
"#;
