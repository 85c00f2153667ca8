//! Probes that agents are told of, and what they report.

use mesh_proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_proto::istio::workload::{Address, WorkloadStatus, address};
use mesh_proto::mesh::{Probe, probe::Method};
use mesh_proto::type_url::{ADDRESS, HEALTH, PROBE};
use prost::Message;

use crate::common::{GROUP, Machine, Server, Stream, eventually};

const UID: &str = "mesh/networking.istio.io/WorkloadEntry/shop/web-10.0.0.1";

/// The status of the machine's workload in a response, if it is there.
fn status(response: &DeltaDiscoveryResponse) -> Option<WorkloadStatus> {
    let resource = response.resources.iter().find(|one| one.name == UID)?;
    let address = Address::decode(resource.resource.as_ref()?.value.as_slice()).unwrap();
    match address.r#type? {
        address::Type::Workload(workload) => Some(workload.status()),
        address::Type::Service(_) => None,
    }
}

async fn until_status(stream: &mut Stream, wanted: WorkloadStatus) {
    stream.until(|response| status(response) == Some(wanted)).await;
}

async fn report(stream: &Stream, reason: Option<&str>) {
    let request = DeltaDiscoveryRequest {
        type_url: HEALTH.into(),
        error_detail: reason.map(|reason| mesh_proto::rpc::Status {
            code: 13,
            message: reason.into(),
            details: vec![],
        }),
        ..Default::default()
    };
    stream.sender.send(request).await.unwrap();
}

fn with_probe(port: u16) -> String {
    GROUP.replace("spec: {", &format!("spec: {{probe: {{tcpSocket: {{port: {port}}}}}, "))
}

fn port_of(response: &DeltaDiscoveryResponse) -> u32 {
    let [resource] = response.resources.as_slice() else {
        panic!("not one probe: {response:?}");
    };
    assert_eq!(resource.name, "shop/web");
    let probe = Probe::decode(resource.resource.as_ref().unwrap().value.as_slice()).unwrap();
    match probe.method {
        Some(Method::Tcp(tcp)) => tcp.port,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_an_agent_reports_is_published_and_shown_and_stays_over_a_reconnect() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let ill = Machine::joined(&server, "10.0.0.1").await;
    let other = Machine::joined(&server, "10.0.0.2").await;
    let mut stream = ill.stream(&server, "one", &[ADDRESS]).await.unwrap();
    let mut watching = other.stream(&server, "two", &[ADDRESS]).await.unwrap();
    until_status(&mut watching, WorkloadStatus::Healthy).await;

    report(&stream, Some("status 503\u{1b}[2J")).await;
    until_status(&mut watching, WorkloadStatus::Unhealthy).await;
    until_status(&mut stream, WorkloadStatus::Unhealthy).await;
    let shown = server.list_agents().await;
    let unhealthy: Vec<_> = shown.iter().map(|agent| (&*agent.address, &*agent.unhealthy)).collect();
    assert!(unhealthy.contains(&("10.0.0.1", "status 503 [2J")) && unhealthy.contains(&("10.0.0.2", "")));
    let entries = server.get("we").await;
    assert_eq!(entries.iter().filter(|one| one.json.contains("status 503")).count(), 1);

    // Gone and back within the grace period: what is known stays, until it reports again.
    drop(stream);
    eventually("disconnect", || async {
        let agents = server.list_agents().await;
        agents.iter().any(|agent| agent.state == "disconnected").then_some(())
    })
    .await;
    let mut again = ill.stream(&server, "three", &[ADDRESS]).await.unwrap();
    until_status(&mut again, WorkloadStatus::Unhealthy).await;
    report(&again, None).await;
    until_status(&mut watching, WorkloadStatus::Healthy).await;
    assert!(
        server
            .list_agents()
            .await
            .iter()
            .all(|agent| agent.unhealthy.is_empty())
    );
}

#[tokio::test]
async fn the_mark_goes_with_the_entry() {
    let server = Server::start().await;
    server.apply(GROUP).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", &[ADDRESS]).await.unwrap();
    report(&stream, Some("draining")).await;
    until_status(&mut stream, WorkloadStatus::Unhealthy).await;
    drop(stream);
    eventually("removal", || async { server.get("we").await.is_empty().then_some(()) }).await;
    let mut again = machine.stream(&server, "two", &[ADDRESS]).await.unwrap();
    until_status(&mut again, WorkloadStatus::Healthy).await;
}

#[tokio::test]
async fn a_workload_with_a_probe_waits_for_its_first_report() {
    let server = Server::start().await;
    server.apply(&with_probe(80)).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", &[ADDRESS]).await.unwrap();
    until_status(&mut stream, WorkloadStatus::Unhealthy).await;
    assert!(server.list_agents().await[0].unhealthy.contains("has not reported yet"));
    report(&stream, None).await;
    until_status(&mut stream, WorkloadStatus::Healthy).await;
}

#[tokio::test]
async fn an_agent_is_told_the_probe_of_its_own_group_only() {
    let server = Server::start().await;
    // The other one first: where ours is published, it is too.
    server
        .apply(&with_probe(443).replace("name: web", "name: secret"))
        .await;
    server.apply(&with_probe(80)).await;
    let machine = Machine::joined(&server, "10.0.0.1").await;
    let mut stream = machine.stream(&server, "one", &[PROBE]).await.unwrap();
    let first = stream.until(|response| !response.resources.is_empty()).await;
    assert_eq!(port_of(&first), 80);
    // Nor by its name; what is asked for afterwards is answered.
    let asking = |type_url: &str, names: &[&str]| DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    stream.sender.send(asking(PROBE, &["shop/secret"])).await.unwrap();
    stream.sender.send(asking(ADDRESS, &[])).await.unwrap();
    assert_eq!(stream.next().await.unwrap().type_url, ADDRESS);

    // A changed group ends the stream; the next one has the change, and the removal.
    server.apply(&with_probe(81)).await;
    let mut stream = machine.stream(&server, "one", &[PROBE]).await.unwrap();
    eventually("the new port", || async {
        server
            .get("wg")
            .await
            .iter()
            .any(|one| one.json.contains("81"))
            .then_some(())
    })
    .await;
    let held = loop {
        match stream.next().await {
            Ok(response) if port_of(&response) == 81 => break response.resources[0].version.clone(),
            Ok(_) => {}
            Err(_) => stream = machine.stream(&server, "one", &[PROBE]).await.unwrap(),
        }
    };
    server.apply(GROUP).await;
    let removed = loop {
        let stream = machine.stream(&server, "one", &[]).await;
        let Ok(mut stream) = stream else { continue };
        let request = DeltaDiscoveryRequest {
            node: Some(machine.node("one")),
            initial_resource_versions: [("shop/web".to_owned(), held.clone())].into(),
            ..asking(PROBE, &[])
        };
        stream.sender.send(request).await.unwrap();
        if let Ok(response) = stream.next().await
            && !response.removed_resources.is_empty()
        {
            break response.removed_resources;
        }
    };
    assert_eq!(removed, ["shop/web"]);
}
