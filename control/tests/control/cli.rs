//! `meshctl` as people and scripts see it: standard output, messages, exit codes.

use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use crate::common::{GROUP, Server};

async fn meshctl(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(arguments)
        .env("MESHCTL_SERVER", format!("unix://{}", socket.display()))
        .env_remove("MESHCTL_OPERATOR_TOKEN")
        .output()
        .await
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn applies_directories_and_names_the_line_of_a_mistake() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("1.yaml"), format!("# first\n---\n{GROUP}")).unwrap();
    std::fs::write(dir.path().join("ignored.txt"), "not: [yaml").unwrap();
    let path = dir.path().to_str().unwrap();
    let done = meshctl(&server.socket(), &["apply", "-f", path]).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(text(&done.stdout), "workloadgroup/web -n shop created\n");

    let broken = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 80}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec:\n  prots: []\n";
    let file = dir.path().join("2.yml");
    std::fs::write(&file, broken).unwrap();
    let failed = meshctl(&server.socket(), &["apply", "-f", path]).await;
    assert_eq!(failed.status.code(), Some(1));
    let place = format!("{}:11:", file.display());
    assert!(text(&failed.stderr).contains(&place), "{failed:?}");
    assert!(server.get("service").await.is_empty());
}

#[tokio::test]
async fn what_a_waypoint_lacks_is_said_when_it_is_applied_and_shown_afterwards() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    let apply = async |yaml: &str| {
        let file = dir.path().join("x.yaml");
        std::fs::write(&file, yaml).unwrap();
        let done = meshctl(&server.socket(), &["apply", "-f", file.to_str().unwrap()]).await;
        assert!(done.status.success(), "{done:?}");
        done
    };
    let condition = async |kind: &str, name: &str| {
        let shown = meshctl(&server.socket(), &["get", kind, name, "-n", "shop", "-o", "json"]).await;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["status"]["conditions"][0].clone()
    };
    let labelled = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\nspec: {finalizers: [kubernetes]}\n";
    let done = apply(labelled).await;
    assert_eq!(text(&done.stdout), "namespace/shop created\n");
    let service = "# above\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let done = apply(service).await;
    assert!(
        text(&done.stderr).contains("x.yaml:3: metadata.labels: waypoint \"shop/w\" is not ready"),
        "{done:?}"
    );
    let unbound = condition("svc", "s").await;
    assert_eq!(
        (&unbound["status"], &unbound["reason"]),
        (&"False".into(), &"WaypointIsNotReady".into())
    );
    let listed = meshctl(&server.socket(), &["get", "svc"]).await;
    assert!(
        text(&listed.stderr).contains("service/s -n shop: waypoint"),
        "{listed:?}"
    );

    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: shop}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";
    let done = apply(gateway).await;
    assert!(
        text(&done.stderr).contains("spec.addresses: nothing says where it is"),
        "{done:?}"
    );
    let done = apply(&service.replace("name: s", "name: w")).await;
    assert_eq!(text(&done.stderr), "");
    assert_eq!(condition("gateway", "w").await["status"], "True");
    let bound = condition("svc", "s").await;
    assert_eq!(bound["type"], "istio.io/WaypointBound");
    assert_eq!(
        (&bound["status"], &bound["reason"]),
        (&"True".into(), &"WaypointAccepted".into())
    );
    // What is shown can be applied as it is.
    let shown = meshctl(&server.socket(), &["get", "svc", "s", "-n", "shop", "-o", "yaml"]).await;
    assert!(text(&shown.stdout).contains("WaypointAccepted"), "{shown:?}");
    let done = apply(text(&shown.stdout)).await;
    assert_eq!(text(&done.stdout), "service/s -n shop unchanged\n");
    let shown = meshctl(&server.socket(), &["get", "ns", "shop", "-o", "yaml"]).await;
    let done = apply(text(&shown.stdout)).await;
    assert_eq!(text(&done.stdout), "namespace/shop unchanged\n");
    let gone = meshctl(&server.socket(), &["delete", "ns", "shop"]).await;
    assert!(gone.status.success(), "{gone:?}");
    assert_eq!(condition("svc", "s").await, serde_json::Value::Null);
}

#[tokio::test]
async fn a_token_stands_alone_on_standard_output() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let made = meshctl(
        &server.socket(),
        &["token", "create", "--group", "shop/web", "--lifetime", "30m"],
    )
    .await;
    let token = text(&made.stdout);
    assert_eq!(token.lines().count(), 1);
    mesh_core::token::decode(token).unwrap();
    let listed = meshctl(&server.socket(), &["token", "list", "-o", "json"]).await;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["state"], "valid");
    let shown = meshctl(&server.socket(), &["get", "wg", "web", "-n", "shop", "-o", "yaml"]).await;
    assert!(
        text(&shown.stdout).starts_with("apiVersion: networking.istio.io/v1\n"),
        "{shown:?}"
    );
}

#[tokio::test]
async fn the_root_is_printed_as_pem() {
    let server = Server::start().await;
    let shown = meshctl(&server.socket(), &["ca", "root"]).await;
    assert!(shown.status.success(), "{shown:?}");
    let lines: Vec<_> = text(&shown.stdout).lines().collect();
    assert_eq!(lines.first(), Some(&"-----BEGIN CERTIFICATE-----"));
    assert_eq!(lines.last(), Some(&"-----END CERTIFICATE-----"));
}

#[tokio::test]
async fn exit_codes_tell_failures_apart() {
    let server = Server::start().await;
    let socket = server.socket();
    for (arguments, code) in [
        (vec!["agents"], 0),
        (vec!["get", "nonsense"], 1),
        (vec!["nonsense"], 2),
        (vec!["get", "wg", "none"], 3),
        (vec!["delete", "wg", "none"], 3),
        (vec!["revoke", "none"], 3),
        (vec!["token", "create", "--group", "no/ne"], 3),
    ] {
        let ended = meshctl(&socket, &arguments).await;
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
        assert_eq!(code == 0, ended.stderr.is_empty(), "{ended:?}");
    }
    let ended = meshctl(Path::new("/nonexistent/control.sock"), &["agents"]).await;
    assert_eq!(ended.status.code(), Some(4));
}
