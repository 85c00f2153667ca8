//! `kill -9` at any moment loses nothing that was acknowledged.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use mesh_proto::mesh::operator_client::OperatorClient;
use mesh_proto::mesh::{ApplyRequest, CreateTokenRequest, GetRequest, ListTokensRequest, SourceDocument};
use tonic::transport::Channel;

fn spawn(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .args(["serve"])
        .env("MESH_CONTROL__DATA_DIR", dir.join("data"))
        .env("MESH_CONTROL__RUN_DIR", dir.join("run"))
        .env("MESH_CONTROL__LISTEN", "127.0.0.1:0")
        .env("MESH_CONTROL__OPERATOR_LISTEN", "127.0.0.1:0")
        .env("MESH_CONTROL_LOG", "error")
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

async fn connect(dir: &Path) -> OperatorClient<Channel> {
    let path = dir.join("run/control.sock");
    crate::common::eventually("the socket", || async {
        tokio::net::UnixStream::connect(&path).await.ok()
    })
    .await;
    OperatorClient::new(crate::common::over_socket(path).await)
}

fn document(name: &str) -> SourceDocument {
    SourceDocument {
        file: "x".into(),
        line: 1,
        yaml: format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"),
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn(dir.path());
    let mut client = connect(dir.path()).await;
    let group = SourceDocument {
        yaml: crate::common::GROUP.into(),
        ..document("x")
    };
    let request = ApplyRequest {
        documents: vec![group],
        dry_run: false,
    };
    client.apply(request).await.unwrap();
    let (mut tokens, mut services) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let work = async {
            for i in 0.. {
                let request = CreateTokenRequest {
                    workload_group: "shop/web".into(),
                    ..Default::default()
                };
                let Ok(made) = client.create_token(request).await else {
                    return;
                };
                tokens.push(made.into_inner().info.unwrap().id);
                let name = format!("s{round}-{i}");
                let request = ApplyRequest {
                    documents: vec![document(&name)],
                    dry_run: false,
                };
                let Ok(applied) = client.apply(request).await else {
                    return;
                };
                assert!(applied.into_inner().problems.is_empty());
                services.push(name);
            }
        };
        let kill = async {
            tokio::time::sleep(std::time::Duration::from_millis(150 + 70 * round)).await;
            child.kill().unwrap();
            child.wait().unwrap();
        };
        tokio::join!(work, kill);
        child = spawn(dir.path());
        client = connect(dir.path()).await;
        let listed = client
            .list_tokens(ListTokensRequest {})
            .await
            .unwrap()
            .into_inner()
            .tokens;
        assert!(tokens.iter().all(|id| listed.iter().any(|t| t.id == *id)));
        let request = GetRequest {
            kind: "service".into(),
            ..Default::default()
        };
        let found = client.get(request).await.unwrap().into_inner().resources;
        assert!(services.iter().all(|name| found.iter().any(|r| r.name == *name)));
    }
    assert!(!tokens.is_empty() && !services.is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
}
