//! Joining: every way in which a token can be wrong, and what stays the same when a call is repeated.

use crate::common::{GROUP, Machine, Server, word};
use mesh_control::ca::PeerCertificate;
use mesh_proto::mesh::{LeaveRequest, RevokeTokenRequest};

#[tokio::test]
async fn each_wrong_token_has_its_own_error_and_leaves_nothing() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let mut cases = Vec::new();
    let mut unknown = server.token(|_| {}).await;
    unknown.token_id = "0011".into();
    cases.push((unknown, "token-unknown"));
    let mut wrong = server.token(|_| {}).await;
    wrong.secret[0] ^= 1;
    cases.push((wrong, "token-secret"));
    let revoked = server.token(|_| {}).await;
    let request = RevokeTokenRequest {
        id: revoked.token_id.clone(),
    };
    server.operator().await.revoke_token(request).await.unwrap();
    cases.push((revoked, "token-revoked"));
    let elsewhere = server.token(|r| r.cidrs = vec!["192.0.2.0/24".into()]).await;
    cases.push((elsewhere, "token-cidr"));
    let short = server.token(|r| r.lifetime_seconds = 1).await;
    crate::common::eventually("the token's expiry", || async {
        let listed = server
            .operator()
            .await
            .list_tokens(mesh_proto::mesh::ListTokensRequest {})
            .await
            .unwrap();
        listed
            .into_inner()
            .tokens
            .into_iter()
            .find(|t| t.id == short.token_id && t.state == "expired")
    })
    .await;
    cases.push((short, "token-expired"));
    for (token, expected) in cases {
        let refused = Machine::new().join(&server, &token, "10.0.0.1").await.unwrap_err();
        assert_eq!(word(&refused), expected, "{refused}");
    }
    assert!(server.list_agents().await.is_empty());
    assert!(server.get("workloadentry").await.is_empty());
}

#[tokio::test]
async fn a_use_is_bound_to_its_host_key_and_may_be_repeated() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let token = server.token(|_| {}).await;
    let mut machine = Machine::new();
    let first = machine.join(&server, &token, "10.0.0.1").await.unwrap();
    let again = machine.join(&server, &token, "10.0.0.1").await.unwrap();
    assert_eq!(first.agent_id, again.agent_id);
    assert_ne!(first.cert_chain[0], again.cert_chain[0]);
    assert_eq!(
        (again.namespace.as_str(), again.service_account.as_str()),
        ("shop", "web")
    );
    assert_eq!(again.workload_name, "web-10.0.0.1");
    let refused = Machine::new().join(&server, &token, "10.0.0.2").await.unwrap_err();
    assert_eq!(word(&refused), "token-spent");
    assert_eq!(server.list_agents().await.len(), 1);
}

#[tokio::test]
async fn the_server_presents_its_pinned_root_and_reserved_identity() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let token = server.token(|_| {}).await;
    let link = crate::common::link(server.agents(), None).await.unwrap();
    let leaf = PeerCertificate::read(&link.presented[0]).unwrap();
    assert_eq!(
        leaf.identity.to_string(),
        "spiffe://mesh.internal/ns/mesh-system/sa/mesh-control"
    );
    let pinned = link.presented.iter().any(|der| {
        let (_, cert) = x509_parser::parse_x509_certificate(der).unwrap();
        let pin = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, cert.public_key().raw);
        token.ca_pins.iter().any(|p| p == pin.as_ref())
    });
    assert!(pinned);
}

#[tokio::test]
async fn only_an_own_and_free_address_is_registered() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    server
        .apply("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: x, namespace: other}\nspec: {address: 10.0.0.9}\n")
        .await;
    for (address, expected) in [
        ("", "address-invalid"),
        ("127.0.0.1", "address-invalid"),
        ("169.254.169.254", "address-invalid"),
        ("192.0.2.1", "address-not-yours"),
        ("10.0.0.9", "address-taken"),
    ] {
        let token = server.token(|_| {}).await;
        let refused = Machine::new().join(&server, &token, address).await.unwrap_err();
        assert_eq!(word(&refused), expected, "{address}: {refused}");
    }
    assert!(server.list_agents().await.is_empty());
}

#[tokio::test]
async fn a_proof_of_another_connection_is_refused() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let token = server.token(|_| {}).await;
    let machine = Machine::new();
    let one = crate::common::link(server.agents(), None).await.unwrap();
    let other = crate::common::link(server.agents(), None).await.unwrap();
    let request = mesh_proto::mesh::JoinRequest {
        token_id: token.token_id,
        secret: token.secret,
        host: Some(machine.proof(&one.exporter)),
        csr: machine.csr(),
        address: "10.0.0.1".into(),
        ..Default::default()
    };
    let mut client = mesh_proto::mesh::join_service_client::JoinServiceClient::new(other.channel);
    let refused = client.join(request).await.unwrap_err();
    assert_eq!(word(&refused), "host-proof");
}

#[tokio::test]
async fn renewal_keeps_the_identity_and_recovery_is_counted() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let mut machine = Machine::joined(&server, "10.0.0.1").await;
    let before = machine.chain[0].clone();
    machine.renew(&server).await.unwrap();
    assert_ne!(machine.chain[0], before);
    machine.recover(&server).await.unwrap();
    machine.renew(&server).await.unwrap();
    assert_eq!(server.list_agents().await[0].recoveries, 1);
    let stranger = Machine::new().recover(&server).await.unwrap_err();
    assert_eq!(word(&stranger), "host-key-unknown");
}

#[tokio::test]
async fn without_a_certificate_nothing_is_issued() {
    let server = Server::start().await;
    let link = crate::common::link(server.agents(), None).await.unwrap();
    let mut client =
        mesh_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient::new(link.channel);
    let request = mesh_proto::istio::ca::IstioCertificateRequest {
        csr: Machine::new().csr(),
        ..Default::default()
    };
    let refused = client.create_certificate(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn who_left_must_join_anew_with_a_new_host_key() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let mut machine = Machine::joined(&server, "10.0.0.1").await;
    let mut client =
        mesh_proto::mesh::join_service_client::JoinServiceClient::new(machine.channel(&server).await.unwrap());
    client.leave(LeaveRequest {}).await.unwrap();
    assert_eq!(word(&machine.recover(&server).await.unwrap_err()), "host-key-revoked");
    assert!(machine.renew(&server).await.is_err());
    let token = server.token(|_| {}).await;
    assert_eq!(
        word(&machine.join(&server, &token, "10.0.0.1").await.unwrap_err()),
        "host-key-revoked"
    );
    Machine::joined(&server, "10.0.0.1").await;
}
