//! A data plane of Istio's as the control plane sees it: who gets a certificate and a stream, and what comes on it.

use std::collections::BTreeMap;

use jsonwebtoken::{Algorithm, Header};
use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::istio::ca::IstioCertificateRequest;
use mesh_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_proto::mesh::{
    CaRotateRequest, CaStatusRequest, CreateTokenRequest, ListTokensRequest, RevokeAgentRequest, RevokeTokenRequest,
};
use mesh_proto::type_url::{ADDRESS, AUTHORIZATION};
use mesh_proto::wkt::{Struct, Value, value::Kind};
use tonic::Code;

use crate::common::{GROUP, Server, Stream, eventually, word};
use crate::data_plane::{
    ISSUER, Issuer, certificate, certificate_with, channel, channel_from, first, leaf, node, stream, wildcard,
};

/// The workload that registers as 10.0.0.9 in group web.
const UID: &str = "mesh/networking.istio.io/WorkloadEntry/shop/web-10.0.0.9";

fn has(response: &DeltaDiscoveryResponse, name: &str) -> bool {
    response.resources.iter().any(|r| r.name == name)
}
/// The response of addresses that satisfies `wanted`, and one of policies, in whichever order they come: what was applied just now
/// may be published only after the first answers.
async fn both(
    stream: &mut Stream,
    wanted: impl Fn(&DeltaDiscoveryResponse) -> bool,
) -> (DeltaDiscoveryResponse, DeltaDiscoveryResponse) {
    let (mut addresses, mut policies) = (None, None);
    loop {
        let next = stream.next().await.unwrap();
        if wanted(&next) {
            addresses = Some(next);
        } else if next.type_url == AUTHORIZATION {
            policies = Some(next);
        }
        if let (Some(addresses), Some(policies)) = (&addresses, &policies) {
            return (addresses.clone(), policies.clone());
        }
    }
}

#[tokio::test]
async fn a_jwt_gives_a_certificate_of_its_service_account() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    let channel = channel(&server).await;
    let response = certificate(channel.clone(), &issuer.token("shop:web")).await.unwrap();
    assert_eq!(
        leaf(&response).identity.to_string(),
        "spiffe://mesh.internal/ns/shop/sa/web"
    );
    assert_eq!(response.cert_chain.len(), 2, "the leaf, and last the roots");
    let again = certificate(channel.clone(), &issuer.token("shop:web")).await.unwrap();
    assert_ne!(leaf(&again).serial, leaf(&response).serial);
    assert_eq!(server.list_agents().await.len(), 1, "the same member");
    let short = |request: &mut IstioCertificateRequest| request.validity_duration = 600;
    let bounded = |request: &mut IstioCertificateRequest| request.validity_duration = i64::MAX;
    for (change, expected) in [(short as fn(&mut _), 600), (bounded, 86_400)] {
        let response = certificate_with(channel.clone(), &issuer.token("shop:web"), change)
            .await
            .unwrap();
        let lifetime = leaf(&response).not_after - mesh_control::store::now();
        assert!((expected - 5..=expected + 5).contains(&lifetime), "{lifetime}");
    }
}

#[tokio::test]
async fn whom_the_control_plane_does_not_believe_gets_nothing() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let server = issuer.server().await;
    let channel = channel(&server).await;
    let late = |c: &mut serde_json::Value| c["exp"] = (mesh_control::store::now() - 100).into();
    for (token, code, expected) in [
        (stranger.token("shop:web"), Code::Unauthenticated, "jwt-signature"),
        (
            issuer.token_with("shop:web", late),
            Code::Unauthenticated,
            "jwt-expired",
        ),
        (
            issuer.token_with("shop:web", |c| c["aud"] = "kubernetes".into()),
            Code::Unauthenticated,
            "jwt-audience",
        ),
        (
            issuer.token_with("shop:web", |c| c["iss"] = "https://other.example".into()),
            Code::Unauthenticated,
            "jwt-issuer",
        ),
        (
            issuer.token_with("shop:web", |c| c["sub"] = "web".into()),
            Code::Unauthenticated,
            "jwt-subject",
        ),
        (
            issuer.token("mesh-system:mesh-control"),
            Code::PermissionDenied,
            "namespace-reserved",
        ),
        ("nonsense".into(), Code::Unauthenticated, "token-invalid"),
        ("mesh1.nonsense".into(), Code::Unauthenticated, "token-invalid"),
    ] {
        let refused = certificate(channel.clone(), &token).await.unwrap_err();
        assert_eq!((refused.code(), word(&refused)), (code, expected), "{refused}");
        let refused = wildcard(channel.clone(), &token, &node("vm", &[]))
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!((refused.code(), word(&refused)), (code, expected), "{refused}");
    }
    let anonymous = IstioCertificateServiceClient::new(channel.clone())
        .create_certificate(IstioCertificateRequest::default())
        .await
        .unwrap_err();
    assert_eq!(word(&anonymous), "unauthenticated");
    let impersonate = |request: &mut IstioCertificateRequest| {
        let other = Kind::StringValue("spiffe://mesh.internal/ns/shop/sa/orders".into());
        let fields = [("ImpersonatedIdentity".to_owned(), Value { kind: Some(other) })];
        request.metadata = Some(Struct { fields: fields.into() });
    };
    let refused = certificate_with(channel, &issuer.token("shop:web"), impersonate)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), word(&refused)),
        (Code::PermissionDenied, "impersonation")
    );
    assert!(refused.message().contains("PROXY_MODE=dedicated"), "{refused}");
}

#[tokio::test]
async fn without_an_issuer_a_jwt_is_refused_with_what_to_do() {
    let server = Server::start().await;
    let refused = certificate(channel(&server).await, &Issuer::new().token("shop:web"))
        .await
        .unwrap_err();
    assert_eq!(word(&refused), "jwt-unconfigured");
    assert!(refused.message().contains("[[jwt]]"), "{refused}");
}

#[tokio::test]
async fn an_issuers_new_key_is_found_when_a_token_names_it() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    let channel = channel(&server).await;
    certificate(channel.clone(), &issuer.token("shop:web")).await.unwrap();
    // The issuer changes its key; the set has another name for it, so that the old one is no candidate.
    let fresh = Issuer::new();
    let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&fresh.key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some("fresh".into());
    std::fs::write(issuer.file.path(), serde_json::json!({ "keys": [jwk] }).to_string()).unwrap();
    let token = || {
        let now = mesh_control::store::now();
        let claims = serde_json::json!({
            "iss": ISSUER, "aud": "istio-ca", "sub": "system:serviceaccount:shop:web", "exp": now + 600,
        });
        let header = Header {
            kid: Some("fresh".into()),
            ..Header::new(Algorithm::ES256)
        };
        jsonwebtoken::encode(&header, &claims, &fresh.key).unwrap()
    };
    eventually("the new key", || async {
        certificate(channel.clone(), &token()).await.ok()
    })
    .await;
    assert!(
        certificate(channel, &issuer.token("shop:web")).await.is_err(),
        "the old key is gone"
    );
}

#[tokio::test]
async fn a_wildcard_stream_gets_the_world_and_a_reconnect_only_what_changed() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    server
        .apply("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop, labels: {networking.istio.io/tunnel: http}}\nspec: {address: 10.0.0.9, serviceAccount: web}\n")
        .await;
    let channel = channel(&server).await;
    let token = issuer.token("shop:web");
    let vm = node("vm", &[]);
    let mut all = wildcard(channel.clone(), &token, &vm).await.unwrap();
    let uid = "mesh/networking.istio.io/WorkloadEntry/shop/vm";
    let (response, policies) = both(&mut all, |r| has(r, uid)).await;
    assert!(has(&policies, "mesh-system/istio_converted_static_strict"));
    let held: BTreeMap<_, _> = response
        .resources
        .iter()
        .map(|r| (r.name.clone(), r.version.clone()))
        .collect();
    assert!(
        server.get("we").await[0].json.contains("10.0.0.9"),
        "the operator's entry stays"
    );
    drop(all);

    let mut versions = held.clone();
    versions.insert("shop/gone.example".into(), "x".into());
    let again = vec![first(&vm, ADDRESS, false, versions)];
    let mut again = stream(channel, &token, again).await.unwrap();
    let response = again.next().await.unwrap();
    assert!(response.resources.is_empty(), "{response:?}");
    assert_eq!(response.removed_resources, ["shop/gone.example"]);
}

#[tokio::test]
async fn on_demand_gets_its_own_workload_and_what_it_names() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    server
        .apply("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.0.0.9, serviceAccount: web}\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: db, namespace: shop, labels: {app: db}}\nspec: {address: 10.0.0.8, network: lab}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: 10.9.0.1, selector: {app: db}, ports: [{port: 80}]}\n")
        .await;
    let vm = node("vm", &[]);
    let requests = vec![
        first(&vm, ADDRESS, true, BTreeMap::new()),
        first(&vm, AUTHORIZATION, false, BTreeMap::new()),
    ];
    let mut demand = stream(channel(&server).await, &issuer.token("shop:web"), requests)
        .await
        .unwrap();
    let names = |r: &DeltaDiscoveryResponse| r.resources.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
    let entry = |name: &str| format!("mesh/networking.istio.io/WorkloadEntry/shop/{name}");
    let (own, _) = both(&mut demand, |r| r.type_url == ADDRESS && !r.resources.is_empty()).await;
    assert_eq!(names(&own), [entry("vm")]);
    let service = "shop/db.shop.mesh.internal".to_owned();
    for (asked, found, removed) in [
        ("lab/10.0.0.8", vec![entry("db")], vec!["lab/10.0.0.8"]),
        ("/10.0.0.77", vec![], vec!["/10.0.0.77"]),
        (service.as_str(), vec![service.clone()], vec![]),
        ("shop/none.example", vec![], vec!["shop/none.example"]),
        (&entry("none"), vec![], vec![&entry("none")]),
    ] {
        let request = DeltaDiscoveryRequest {
            type_url: ADDRESS.into(),
            resource_names_subscribe: vec![asked.to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        demand.sender.send(request).await.unwrap();
        let response = demand.next().await.unwrap();
        assert_eq!(names(&response), found, "{asked}");
        assert_eq!(response.removed_resources, removed, "{asked}");
    }
}

#[tokio::test]
async fn a_stream_must_be_of_the_namespace_that_its_token_names() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    let channel = channel(&server).await;
    for (token, more) in [
        (issuer.token("other:web"), vec![]),
        (issuer.token("shop:web"), vec![("SERVICE_ACCOUNT", "orders")]),
    ] {
        let mut stream = wildcard(channel.clone(), &token, &node("vm", &more)).await.unwrap();
        assert_eq!(word(&stream.next().await.unwrap_err()), "identity-mismatch");
    }
}

#[tokio::test]
async fn auto_registration_as_istiod_has_it() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    let channel = channel(&server).await;
    let token = issuer.token("shop:web");
    let registering = node("web-10.0.0.9", &[("AUTO_REGISTER_GROUP", "web")]);
    let mut stream = wildcard(channel.clone(), &token, &registering).await.unwrap();
    stream.until(|r| has(r, UID)).await;
    let listed = server.list_agents().await;
    assert_eq!(
        (listed[0].state.as_str(), listed[0].workload.as_str()),
        ("connected", "web-10.0.0.9")
    );
    let entry = &server.get("we").await[0].json;
    assert!(entry.contains("\"networking.istio.io/tunnel\":\"http\""), "{entry}");
    // A second process of the same subject behind the same address is refused, and the first goes on.
    let other = node("other", &[("AUTO_REGISTER_GROUP", "web")]);
    let mut clone = wildcard(channel.clone(), &token, &other).await.unwrap();
    assert_eq!(word(&clone.next().await.unwrap_err()), "clone");
    drop(stream);
    eventually("removal", || async { server.get("we").await.is_empty().then_some(()) }).await;

    let named = node("x", &[("AUTO_REGISTER_GROUP", "web"), ("NETWORK", "lab")]);
    let mut stream = wildcard(channel.clone(), &token, &named).await.unwrap();
    stream.until(|r| has(r, &format!("{UID}-lab"))).await;
    drop(stream);
    for (token, node, expected) in [
        (&token, node("x", &[("AUTO_REGISTER_GROUP", "none")]), "group-unknown"),
        (
            &token,
            node("x", &[("AUTO_REGISTER_GROUP", "web"), ("INSTANCE_IPS", "192.0.2.1")]),
            "address-not-yours",
        ),
        (
            &issuer.token("shop:orders"),
            node("x", &[("AUTO_REGISTER_GROUP", "web")]),
            "identity-mismatch",
        ),
    ] {
        // The stream before may still hold the member's place.
        eventually(expected, || async {
            let mut stream = wildcard(channel.clone(), token, &node).await.unwrap();
            (word(&stream.next().await.err()?) == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_join_token_is_bound_to_the_address_that_uses_it() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let request = CreateTokenRequest {
        workload_group: "shop/web".into(),
        ..CreateTokenRequest::default()
    };
    let made = server
        .operator()
        .await
        .create_token(request)
        .await
        .unwrap()
        .into_inner();
    let id = made.info.unwrap().id;
    let here = channel(&server).await;
    // xDS and certificates come in any order, and any number of times.
    let mut stream = wildcard(here.clone(), &made.token, &node("vm", &[])).await.unwrap();
    stream.next().await.unwrap();
    for _ in 0..2 {
        let response = certificate(here.clone(), &made.token).await.unwrap();
        assert_eq!(
            leaf(&response).identity.to_string(),
            "spiffe://mesh.internal/ns/shop/sa/web"
        );
    }
    let tokens = server.operator().await.list_tokens(ListTokensRequest {}).await.unwrap();
    assert_eq!(tokens.into_inner().tokens[0].uses, 1);
    let elsewhere = channel_from(&server, "127.0.0.2").await;
    let refused = certificate(elsewhere.clone(), &made.token).await.unwrap_err();
    assert_eq!(
        (refused.code(), word(&refused)),
        (Code::PermissionDenied, "token-spent")
    );
    let refused = wildcard(elsewhere, &made.token, &node("vm", &[]))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(word(&refused), "token-spent");
    server
        .operator()
        .await
        .revoke_token(RevokeTokenRequest { id })
        .await
        .unwrap();
    let refused = certificate(here, &made.token).await.unwrap_err();
    assert_eq!(word(&refused), "token-revoked");
}

#[tokio::test]
async fn a_revoked_member_is_cut_off_until_its_issuer_says_otherwise() {
    let issuer = Issuer::new();
    let server = issuer.server().await;
    let channel = channel(&server).await;
    let token = issuer.token("shop:web");
    certificate(channel.clone(), &token).await.unwrap();
    let mut cut = wildcard(channel.clone(), &token, &node("vm", &[])).await.unwrap();
    cut.next().await.unwrap();
    let agent = server.list_agents().await[0].id.clone();
    let request = RevokeAgentRequest { agent };
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
    assert_eq!(word(&ended), "member-revoked");
    let refused = certificate(channel.clone(), &token).await.unwrap_err();
    assert_eq!(
        (refused.code(), word(&refused)),
        (Code::PermissionDenied, "member-revoked")
    );
    let later = issuer.token_with("shop:web", |c| c["iat"] = (mesh_control::store::now() + 1).into());
    certificate(channel, &later).await.unwrap();
}

#[tokio::test]
async fn a_rotation_waits_for_members_without_a_trust_bundle() {
    let issuer = Issuer::new();
    let settings = issuer.settings();
    let server = Server::with(|s| {
        s.jwt = vec![settings];
        s.grace_seconds = 0;
    })
    .await;
    let channel = channel(&server).await;
    certificate(channel.clone(), &issuer.token("shop:web")).await.unwrap();
    let mut operator = server.operator().await;
    let status = operator
        .ca_rotate(CaRotateRequest { force: false })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.phase.as_str(), status.agents, status.acknowledged),
        ("distributing", 1, 0)
    );
    // Its next certificate brings both anchors; with that it has acknowledged the new one.
    let renewed = certificate(channel, &issuer.token("shop:web")).await.unwrap();
    assert_eq!(renewed.cert_chain.last().unwrap().matches("BEGIN").count(), 2);
    let status = operator.ca_status(CaStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.phase, "retiring");
}
