//! Operator calls: who may make them, that applying is all or nothing, and what survives.

use crate::common::{GROUP, Machine, Server, word};
use mesh_control::operator::OperatorCredential;
use mesh_proto::mesh::operator_client::OperatorClient;
use mesh_proto::mesh::{ApplyRequest, CreateOperatorTokenRequest, DeleteRequest, ListTokensRequest, SourceDocument};
use tonic::{Code, Request};

#[tokio::test]
async fn neither_strangers_nor_workloads_are_operators() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let identity = Some((machine.chain.as_slice(), &machine.key));
    for identity in [None, identity] {
        let link = crate::common::link(server.operators(), identity).await.unwrap();
        let refused = OperatorClient::new(link.channel)
            .list_tokens(ListTokensRequest {})
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), word(&refused)),
            (Code::Unauthenticated, "not-operator")
        );
        let link = crate::common::link(server.agents(), identity).await.unwrap();
        let refused = OperatorClient::new(link.channel)
            .list_tokens(ListTokensRequest {})
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn an_operator_token_opens_calls_until_it_is_replaced() {
    let server = Server::start().await;
    let create = || CreateOperatorTokenRequest {
        name: "ci".into(),
        lifetime_seconds: 0,
    };
    let made = server
        .operator()
        .await
        .create_operator_token(create())
        .await
        .unwrap()
        .into_inner();
    let credential = OperatorCredential::decode(&made.token).unwrap();
    let call = || {
        let mut request = Request::new(ListTokensRequest {});
        let bearer = format!("Bearer {}", credential.secret);
        request.metadata_mut().insert("authorization", bearer.parse().unwrap());
        request
    };
    let link = crate::common::link(server.operators(), None).await.unwrap();
    let mut client = OperatorClient::new(link.channel);
    client.list_tokens(call()).await.unwrap();
    server.operator().await.create_operator_token(create()).await.unwrap();
    assert_eq!(
        client.list_tokens(call()).await.unwrap_err().code(),
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn applying_is_all_or_nothing() {
    let server = Server::start().await;
    let document = |yaml: &str| SourceDocument {
        file: "a.yaml".into(),
        line: 5,
        yaml: yaml.into(),
    };
    let broken = "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports: [{port: 80}]\n  bogus: 1\n";
    let request = ApplyRequest {
        documents: vec![document(GROUP), document(broken)],
        dry_run: false,
    };
    let response = server.operator().await.apply(request).await.unwrap().into_inner();
    assert_eq!(
        (response.problems[0].file.as_str(), response.problems[0].line),
        ("a.yaml", 11)
    );
    assert!(server.get("").await.is_empty());
    let request = ApplyRequest {
        documents: vec![document(GROUP)],
        dry_run: true,
    };
    let response = server.operator().await.apply(request).await.unwrap().into_inner();
    assert_eq!(response.applied[0].action, "created");
    assert!(server.get("").await.is_empty());
    assert_eq!(server.apply(GROUP).await.applied[0].action, "created");
    assert_eq!(server.apply(GROUP).await.applied[0].action, "unchanged");
    let request = DeleteRequest {
        kind: "wg".into(),
        namespace: "shop".into(),
        name: "web".into(),
    };
    let mut operator = server.operator().await;
    operator.delete(request.clone()).await.unwrap();
    assert_eq!(operator.delete(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_restart_keeps_agents_and_addresses() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let mut machine = Machine::joined(&server, "10.0.0.1").await;
    let server = server.restart().await;
    machine.renew(&server).await.unwrap();
    assert_eq!(server.get("wg").await.len(), 1);
}
