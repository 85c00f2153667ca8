//! What scripts rely on: exit codes, JSON, and errors that say where and what to do. No root, no daemon.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

/// A machine of its own: settings, state and run directory in `dir`.
struct Shell {
    dir: tempfile::TempDir,
}

impl Shell {
    fn new(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = format!(
            "[paths]\nstate = {:?}\nrun = {:?}\n",
            dir.path().join("state"),
            dir.path().join("run")
        );
        std::fs::write(dir.path().join("agent.toml"), format!("{paths}{settings}")).unwrap();
        Self { dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command
            .args(args)
            .arg("--config")
            .arg(self.file())
            .env_remove("MESH_AGENT_TOKEN");
        command
    }

    fn run(&self, args: &[&str]) -> (i32, String, String) {
        read(self.command(args).output().unwrap())
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("agent.toml")
    }
}

fn read(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn without_a_daemon_status_says_so_with_its_own_exit_code() {
    let shell = Shell::new("");
    let (code, out, err) = shell.run(&["status"]);
    assert_eq!((code, err.as_str()), (4, ""));
    assert!(out.contains("systemctl start mesh-agent"), "{out}");
    let (code, out, _) = shell.run(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["state"]), (4, &"stopped".into()));
}

#[test]
fn without_a_daemon_there_is_nothing_to_drain() {
    let shell = Shell::new("");
    for args in [&["drain"][..], &["drain", "--wait", "5"], &["drain", "--undo"]] {
        let (code, out, err) = shell.run(args);
        assert_eq!((code, err.as_str()), (4, ""), "{args:?}");
        assert!(out.contains("does not run"), "{out}");
    }
    // Waiting to be back is not what waiting means.
    assert_eq!(shell.run(&["drain", "--undo", "--wait", "5"]).0, 2);
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    let shell = Shell::new("");
    assert_eq!(shell.run(&["staus"]).0, 2);
    assert_eq!(shell.run(&["status", "-o", "xml"]).0, 2);
    for args in [&["--help"][..], &["join", "--help"], &["config", "show", "--help"]] {
        let (code, out, _) = shell.run(args);
        assert_eq!(code, 0);
        assert!(out.contains("Examples:"), "{out}");
    }
}

#[test]
fn leaving_what_was_not_joined_is_3() {
    let (code, out, _) = Shell::new("").run(&["leave"]);
    assert_eq!(code, 3, "{out}");
}

#[test]
fn a_bad_token_is_told_before_anyone_is_asked() {
    let shell = Shell::new("");
    let (code, out, err) = shell.run(&["join", "mesh1-nonsense"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.contains("warning: other users can see a token on the command line"),
        "{err}"
    );
    assert!(err.contains("mesh-agent: "), "{err}");
    let (code, _, err) = shell.run(&["join", "--token-file", "/nonexistent/token"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("/nonexistent/token") && err.contains("No such file"),
        "{err}"
    );
    assert!(
        !Path::new(&shell.dir.path().join("state")).exists(),
        "nothing is left behind"
    );
}

#[test]
fn config_check_names_the_file_and_the_key() {
    let (code, out, _) = Shell::new("").run(&["config", "check"]);
    assert_eq!(code, 0);
    assert!(out.contains("agent.toml is valid"), "{out}");
    for (settings, words) in [
        ("[capture]\nmtu = \"large\"\n", &["capture.mtu"][..]),
        ("[capture]\nmtuu = 1500\n", &["mtuu"]),
        ("[capture\n", &["agent.toml", "line"]),
        ("[log]\nlevel = \"loud=very\"\n", &["log.level"]),
    ] {
        let (code, _, err) = Shell::new(settings).run(&["config", "check"]);
        assert_eq!(code, 1, "{settings}");
        for word in words {
            assert!(err.contains(word), "{word:?} in {err}");
        }
    }
}

#[test]
fn config_show_says_where_each_value_comes_from() {
    let shell = Shell::new("[outbound]\nattempts = 5\n");
    std::fs::create_dir(shell.dir.path().join("conf.d")).unwrap();
    std::fs::write(
        shell.dir.path().join("conf.d/10-site.toml"),
        "[dns]\ncluster_domain = \"site.local\"\n",
    )
    .unwrap();
    let mut command = shell.command(&["config", "show", "-o", "json"]);
    let (code, out, err) = read(command.env("MESH_AGENT__LOG__LEVEL", "debug").output().unwrap());
    assert_eq!(code, 0, "{err}");
    let all: serde_json::Value = serde_json::from_str(&out).unwrap();
    for (key, value, origin) in [
        ("outbound.attempts", serde_json::json!(5), "agent.toml"),
        ("dns.cluster_domain", serde_json::json!("site.local"), "10-site.toml"),
        ("log.level", serde_json::json!("debug"), "environment"),
        ("capture.tun", serde_json::json!("mesh0"), "default"),
    ] {
        assert_eq!(all[key]["value"], value, "{key} in {out}");
        assert!(all[key]["origin"].as_str().unwrap().contains(origin), "{key} in {out}");
    }
    let (_, out, _) = shell.run(&["config", "show"]);
    assert!(!out.contains('\x1b'), "no colours but on a terminal");
}
