//! Streams: registration, clones, grace, reconnects, revocation, and rotation as agents see them.

use crate::common::{GROUP, Machine, Server, eventually, word};
use mesh_proto::envoy::discovery::DeltaDiscoveryRequest;
use mesh_proto::istio::workload::{Address, address};
use mesh_proto::mesh::{
    CaRotateRequest, CaStatusRequest, CreateOperatorTokenRequest, Revocation, RevokeAgentRequest, TrustBundle,
};
use mesh_proto::type_url::{ADDRESS, AUTHORIZATION, REVOCATION, TRUST_BUNDLE};
use prost::Message;
use tokio::process::Command;

const ALL: &[&str] = &[ADDRESS, AUTHORIZATION, REVOCATION, TRUST_BUNDLE];
const UID: &str = "mesh/networking.istio.io/WorkloadEntry/shop/web-10.0.0.1";

fn has(response: &mesh_proto::envoy::discovery::DeltaDiscoveryResponse, name: &str) -> bool {
    response.resources.iter().any(|r| r.name == name)
}

fn both_anchors(response: &mesh_proto::envoy::discovery::DeltaDiscoveryResponse) -> bool {
    let any = response.resources[0].resource.as_ref().unwrap();
    TrustBundle::decode(any.value.as_slice()).unwrap().anchors.len() == 2
}

#[tokio::test]
async fn a_stream_registers_and_every_type_is_answered() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", ALL).await.unwrap();
    let mut answered = std::collections::BTreeSet::new();
    let mut registered = false;
    while answered.len() < 4 || !registered {
        let response = stream.next().await.unwrap();
        if let Some(entry) = response.resources.iter().find(|r| r.name == UID) {
            registered = true;
            let address = Address::decode(entry.resource.as_ref().unwrap().value.as_slice()).unwrap();
            let Some(address::Type::Workload(workload)) = address.r#type else {
                panic!("{address:?}")
            };
            assert_eq!(workload.extensions[0].name, "mesh.v1.hbone3");
        }
        answered.insert(response.type_url);
    }
    server
        .apply("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [w.example], resolution: STATIC, ports: [{number: 80, name: http}], workloadSelector: {labels: {app: web}}}\n")
        .await;
    let response = stream.until(|r| has(r, "shop/web.shop.mesh.internal")).await;
    assert!(has(&response, UID), "its services changed");
    server
        .apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\nspec: {action: DENY, rules: [{}]}\n")
        .await;
    stream.until(|r| has(r, "shop/deny")).await;
    assert_eq!(server.list_agents().await[0].state, "connected");
}

#[tokio::test]
async fn an_entry_outlives_its_stream_by_the_grace_period_only() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", ALL).await.unwrap();
    stream.until(|r| has(r, UID)).await;
    drop(stream);
    eventually("disconnect", || async {
        (server.list_agents().await[0].state == "disconnected").then_some(())
    })
    .await;
    assert_eq!(server.get("we").await.len(), 1);
    eventually("removal", || async { server.get("we").await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_clone_is_refused_and_shown_and_a_reconnect_is_not() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut first = machine.stream(&server, "one", ALL).await.unwrap();
    first.next().await.unwrap();
    let mut clone = machine.stream(&server, "two", ALL).await.unwrap();
    let refused = clone.next().await.unwrap_err();
    assert_eq!(
        (refused.code(), word(&refused)),
        (tonic::Code::PermissionDenied, "clone")
    );
    assert_eq!(server.list_agents().await[0].clones.len(), 1);
    let mut again = machine.stream(&server, "one", ALL).await.unwrap();
    again.next().await.unwrap();
    let ended = loop {
        if let Err(status) = first.next().await {
            break status;
        }
    };
    assert_eq!(word(&ended), "replaced");
}

#[tokio::test]
async fn a_reconnect_with_versions_is_told_only_what_changed() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", &[ADDRESS]).await.unwrap();
    let response = stream.until(|r| has(r, UID)).await;
    let versions: std::collections::BTreeMap<_, _> = response
        .resources
        .iter()
        .map(|r| (r.name.clone(), r.version.clone()))
        .collect();
    let mut again = machine.stream(&server, "one", &[]).await.unwrap();
    let mut held = versions.clone();
    held.insert("shop/gone.example".into(), "x".into());
    let request = DeltaDiscoveryRequest {
        node: Some(machine.node("one")),
        type_url: ADDRESS.into(),
        initial_resource_versions: held,
        ..Default::default()
    };
    again.sender.send(request).await.unwrap();
    let response = again.next().await.unwrap();
    assert!(response.resources.is_empty());
    assert_eq!(response.removed_resources, ["shop/gone.example"]);
}

#[tokio::test]
async fn what_a_stream_claims_must_fit_its_certificate() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let mut machine = Machine::joined(&server, "10.0.0.1").await;
    machine.joined.namespace = "other".into();
    let mut stream = machine.stream(&server, "one", &[ADDRESS]).await.unwrap();
    assert_eq!(word(&stream.next().await.unwrap_err()), "identity-mismatch");
}

#[tokio::test]
async fn a_revoked_agent_is_cut_off_and_everyone_is_told() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let mut bad = Machine::joined(&server, "10.0.0.1").await;
    let good = Machine::joined(&server, "10.0.0.2").await;
    let mut cut = bad.stream(&server, "one", ALL).await.unwrap();
    cut.until(|r| has(r, UID)).await;
    let mut told = good.stream(&server, "two", &[REVOCATION, ADDRESS]).await.unwrap();
    told.until(|r| has(r, UID)).await;
    let request = RevokeAgentRequest {
        agent: "shop/web-10.0.0.1".into(),
    };
    let revoked = server
        .operator()
        .await
        .revoke_agent(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(revoked.certificates, 1);
    let ended = loop {
        if let Err(status) = cut.next().await {
            break status;
        }
    };
    assert_eq!(word(&ended), "host-key-revoked");
    let mut removed = false;
    let mut revocation = None;
    while !removed || revocation.is_none() {
        let response = told.next().await.unwrap();
        removed |= response.removed_resources.iter().any(|name| name == UID);
        if response.type_url == REVOCATION {
            revocation = response.resources.into_iter().next().or(revocation);
        }
    }
    let any = revocation.unwrap().resource.unwrap();
    let revocation = Revocation::decode(any.value.as_slice()).unwrap();
    assert_eq!(
        (revocation.name, revocation.serials.len()),
        (bad.joined.agent_id.clone(), 1)
    );
    assert!(
        bad.stream(&server, "one", ALL).await.is_err(),
        "the handshake is refused"
    );
    assert_eq!(word(&bad.recover(&server).await.unwrap_err()), "host-key-revoked");
    let agents = server.list_agents().await;
    let listed = agents.iter().find(|a| a.id == bad.joined.agent_id).unwrap();
    assert_eq!(listed.state, "revoked");
}

#[tokio::test]
async fn the_new_key_signs_only_after_everyone_acknowledged_it() {
    let server = Server::with(|s| s.grace_seconds = 0).await;
    server.apply(GROUP).await;
    let mut one = Machine::joined(&server, "10.0.0.1").await;
    let mut two = Machine::joined(&server, "10.0.0.2").await;
    let mut first = one.stream(&server, "one", &[TRUST_BUNDLE]).await.unwrap();
    first.next().await.unwrap();
    let mut operator = server.operator().await;
    let create = CreateOperatorTokenRequest {
        name: "ci".into(),
        lifetime_seconds: 0,
    };
    let old_pin = operator.create_operator_token(create).await.unwrap().into_inner().token;
    let status = operator
        .ca_rotate(CaRotateRequest { force: false })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((status.phase.as_str(), status.anchors.len()), ("distributing", 2));
    let token = server.token(|_| {}).await;
    assert_eq!(token.ca_pins.len(), 2);
    let mut three = Machine::new();
    three.join(&server, &token, "10.0.0.3").await.unwrap();
    assert_eq!(three.chain.last().unwrap().matches("BEGIN").count(), 2);
    let mut third = three.stream(&server, "three", &[TRUST_BUNDLE]).await.unwrap();
    // Whoever connects before the new anchor is published is told the old one first.
    third.until(both_anchors).await;
    first.until(both_anchors).await;
    eventually("one acknowledgement", || async {
        let status = server
            .operator()
            .await
            .ca_status(CaStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        (status.acknowledged == 2 && status.agents == 3).then_some(())
    })
    .await;
    let mut second = two.stream(&server, "two", &[TRUST_BUNDLE]).await.unwrap();
    second.until(both_anchors).await;
    eventually("the switch", || async {
        let status = server
            .operator()
            .await
            .ca_status(CaStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        (status.phase == "retiring" && status.anchors[1].signing).then_some(())
    })
    .await;
    // Who knows only the old key still finds a path to it.
    let listed = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["token", "list"])
        .env("MESHCTL_OPERATOR_TOKEN", &old_pin)
        .output()
        .await
        .unwrap();
    assert!(listed.status.success(), "{listed:?}");
    for machine in [&mut one, &mut two, &mut three] {
        machine.renew(&server).await.unwrap();
    }
    eventually("the old anchor's end", || async {
        let status = server
            .operator()
            .await
            .ca_status(CaStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        (status.phase == "steady" && status.anchors.len() == 1).then_some(())
    })
    .await;
    three.renew(&server).await.unwrap();
    assert_eq!(three.chain.last().unwrap().matches("BEGIN").count(), 1);
}

#[tokio::test]
async fn a_changed_group_registers_its_agents_anew() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", ALL).await.unwrap();
    stream.until(|r| has(r, UID)).await;
    server.apply(&GROUP.replace("app: web", "app: changed")).await;
    let ended = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert_eq!(word(&ended), "group-changed");
    let _again = machine.stream(&server, "one", ALL).await.unwrap();
    eventually("the new label", || async {
        let entries = server.get("we").await;
        entries
            .iter()
            .any(|e| e.json.contains("\"app\":\"changed\""))
            .then_some(())
    })
    .await;
}
