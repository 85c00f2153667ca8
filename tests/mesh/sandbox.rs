//! What a probe's command can do: its sandbox, on a machine of the lab, as the agent runs it.

use std::path::Path;
use std::process::Command;

use crate::fixture::{Mesh, SOON, text};
use crate::health::probe;
use mesh_lab::{Host, wait_until};
use serde_json::json;

/// A machine whose own directories are there for everybody to read, as far as file modes go.
struct Sandbox {
    host: Host,
    dir: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = Self {
            host: Host::new("sandbox"),
            dir,
        };
        for part in ["state/key.pem", "run/admin.sock", "beside/file"] {
            let path = sandbox.path(part);
            std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
            std::fs::write(&path, "secret").unwrap();
        }
        let root = sandbox.path("");
        sandbox.host.sh(&format!("chmod -R a+rwX {root}"));
        sandbox
    }

    fn path(&self, part: &str) -> String {
        self.dir.path().join(part).display().to_string()
    }

    /// What a shell in the sandbox prints.
    fn sh(&self, script: &str) -> String {
        let output = self.command(&["/bin/sh", "-c", script]).output().unwrap();
        text(&output)
    }

    fn command(&self, command: &[&str]) -> Command {
        let mut sandbox = self.host.command(env!("CARGO_BIN_EXE_mesh-agent"));
        sandbox
            .args([
                "sandbox",
                "--hide",
                &self.path("state"),
                "--hide",
                &self.path("run"),
                "--",
            ])
            .args(command)
            .env("SECRET", "in the environment");
        sandbox
    }
}

#[test]
fn what_is_hidden_cannot_be_seen_and_the_rest_can() {
    let sandbox = Sandbox::new();
    let (state, run, beside) = (sandbox.path("state"), sandbox.path("run"), sandbox.path("beside"));
    assert!(sandbox.sh(&format!("cat {beside}/file")).contains("secret"));
    for script in [
        format!("cat {state}/key.pem"),
        format!("cat {beside}/../state/key.pem"),
        format!("ln -s {state}/key.pem {beside}/link; cat {beside}/link"),
        format!("ls {state}"),
        format!("ls {run}"),
        format!("echo x > {state}/key.pem"),
        format!("rm {run}/admin.sock"),
    ] {
        let said = sandbox.sh(&script);
        assert!(said.contains("ermission denied"), "{script}: {said}");
        assert!(
            !said.contains("secret") && !said.contains("key.pem\n"),
            "{script}: {said}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(sandbox.path("state/key.pem")).unwrap(),
        "secret"
    );
    assert!(Path::new(&sandbox.path("run/admin.sock")).exists());
    // Of other processes neither: here those of root.
    assert!(
        !sandbox
            .sh("cat /proc/1/environ | tr '\\0' '\\n'; ls /proc/1/root")
            .contains("PATH=")
    );
}

#[test]
fn it_is_nobody_with_no_capability_no_file_and_no_environment() {
    let sandbox = Sandbox::new();
    let status = sandbox.sh("cat /proc/self/status");
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t \n",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.contains(line), "{line:?} in {status}");
    }
    let environment = sandbox.sh("cat /proc/self/environ | tr '\\0' '\\n'; pwd");
    assert!(
        environment.contains("\n/\n") && !environment.contains("SECRET"),
        "{environment}"
    );
    // Of a parent that leaves a file open: only the standard ones, and that of the directory which is listed.
    let mut shell = sandbox.host.command("/bin/sh");
    let own = sandbox.command(&["/bin/ls", "/proc/self/fd"]);
    let arguments: Vec<_> = own.get_args().collect();
    shell
        .args(["-c", "exec 7</etc/passwd; exec \"$@\"", "sh"])
        .arg(own.get_program())
        .args(arguments);
    let output = shell.output().unwrap();
    let open: Vec<_> = std::str::from_utf8(&output.stdout)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(open, ["0", "1", "2", "3"], "{}", text(&output));
}

#[test]
fn the_units_user_keeps_its_name_and_nothing_else() {
    let sandbox = Sandbox::new();
    let own = sandbox.command(&[
        "/bin/sh",
        "-c",
        "cat /proc/self/status; cat \"$0\"",
        &sandbox.path("state/key.pem"),
    ]);
    sandbox
        .host
        .sh(&format!("chown -R 4711 {0} && chmod -R go= {0}", sandbox.path("state")));
    let mut unit = sandbox.host.command("setpriv");
    unit.args([
        "--reuid=4711",
        "--regid=4711",
        "--clear-groups",
        "--bounding-set=-all,+net_admin",
    ])
    .args(["--inh-caps=+net_admin", "--ambient-caps=+net_admin"])
    .arg(own.get_program())
    .args(own.get_args());
    let output = unit.output().unwrap();
    let said = text(&output);
    for line in [
        "Uid:\t4711\t4711\t4711\t4711",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(said.contains(line), "{line:?} in {said}");
    }
    assert!(said.contains("ermission denied") && !said.contains("secret"), "{said}");
}

#[test]
fn what_cannot_be_hidden_is_not_run() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.host.command(env!("CARGO_BIN_EXE_mesh-agent"));
    command.args(["sandbox", "--hide", "/does/not/exist", "--", "/bin/echo", "run"]);
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(text(&output).contains("/does/not/exist"), "{}", text(&output));
    let output = sandbox.command(&["/does/not/exist"]).output().unwrap();
    assert!(text(&output).contains("running /does/not/exist"), "{}", text(&output));
}

#[test]
fn time_and_output_are_bounded_and_nothing_survives() {
    let mut mesh = Mesh::start();
    // It prints without end, has a child, and ignores what may be ignored.
    let script = "trap '' TERM HUP; sleep 86399 & yes mesh-probe-output";
    let command = json!(["/bin/sh", "-c", script]);
    probe(
        &mesh,
        &json!({ "periodSeconds": 3600, "timeoutSeconds": 1, "exec": { "command": command } }),
    );
    let mut machine = mesh.machine("m");
    machine.configure(&format!("[health]\nexec = [{command}]\n"));
    machine.join(&mesh.token("shop/orders"));
    machine.start();
    wait_until(SOON, "the probe to be out of time", || {
        machine.status()["health"]["reason"] == "no answer within 1 s"
    });
    let left = || {
        machine
            .host
            .sh("ps -eo args | grep -E '^(sleep 86399|yes mesh-probe)' || true")
    };
    wait_until(SOON, "everything of it to be killed", || left().is_empty());
}

#[test]
fn a_command_of_the_agents_own_user_is_no_operator() {
    let mut mesh = Mesh::start();
    let mut machine = mesh.machine("m");
    let socket = machine.dir.join("run/admin.sock");
    let command = json!([
        "/bin/sh",
        "-c",
        format!(
            "curl -s --unix-socket {} http://agent/config_dump; exit 1",
            socket.display()
        )
    ]);
    probe(
        &mesh,
        &json!({ "periodSeconds": 1, "timeoutSeconds": 10, "exec": { "command": command } }),
    );
    machine.configure(&format!("[health]\nexec = [{command}]\n"));
    machine.join(&mesh.token("shop/orders"));
    machine.start_as_user();
    wait_until(SOON, "the probe's verdict", || {
        machine.status()["health"]["state"] == "unhealthy"
    });
    let reason = machine.status()["health"]["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("not an operator") && !reason.contains("workloads"),
        "{reason}"
    );
}
