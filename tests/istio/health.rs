//! A machine that is ill or drained leaves rotation at istiod, whose WDS ignores health: its registration is given up, and its
//! world and its flows go on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use mesh_lab::wait_until;
use mesh_proto::type_url;

use crate::fixture::{Machine, SOON, text};
use crate::lab::{Lab, join};
use crate::script::text as metadata;
use crate::tools::Tools as _;

/// Whether istiod has a record of it.
fn is_recorded(lab: &Lab, machine: &Machine) -> bool {
    let name = lab.record(machine);
    let script = lab.script.lock();
    script.resources[type_url::ADDRESS]
        .keys()
        .any(|uid| uid.ends_with(&format!("/{name}")))
}

/// The reports on its last stream that registered, and whether that is open.
fn reported(lab: &Lab, machine: &Machine) -> (Vec<Option<String>>, bool) {
    let name = lab.record(machine);
    let script = lab.script.lock();
    let mut of_it = script.registrations().into_iter();
    let last = of_it.rfind(|stream| metadata(&stream.node, "NAME").as_ref() == Some(&name));
    last.map_or_else(Default::default, |stream| (stream.health.clone(), stream.is_open()))
}

/// Whether it is in the world of another one.
fn is_known(other: &Machine, count: u64) -> bool {
    other.status()["world"]["workloads"] == count
}

fn echo(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}

fn agent(machine: &Machine, args: &[&str]) -> String {
    let output = machine.try_agent(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

#[test]
fn a_drained_machine_is_forgotten_and_goes_on() {
    let lab = Lab::start();
    let (mut first, second) = (lab.member_named("first"), lab.member_named("second"));
    for (machine, other) in [(&first, &second), (&second, &first)] {
        wait_until(SOON, "both to know both", || is_known(machine, 2) && is_known(other, 2));
    }
    let (_first_echo, _second_echo) = (
        first.host.echo_server("0.0.0.0:9090"),
        second.host.echo_server("0.0.0.0:9090"),
    );
    let towards = |machine: &Machine| format!("{}:9090", machine.ip4);
    let mut living = second.host.connect(&towards(&first)).unwrap();
    echo(&mut living);
    assert_eq!(first.status()["flows"]["inbound"], 1, "the flow came by the mesh");

    agent(&first, &["drain"]);
    wait_until(SOON, "the registration to be given up", || {
        reported(&lab, &first) == (vec![None, Some("draining".into())], false)
    });
    assert!(!is_recorded(&lab, &first));
    wait_until(SOON, "the others to hear of it", || is_known(&second, 1));
    wait_until(SOON, "the machine to hear of it", || is_known(&first, 1));
    // What lives goes on, what it opens itself too, and nothing is wrong.
    echo(&mut living);
    echo(&mut first.host.connect(&towards(&second)).unwrap());
    let status = first.status();
    let health = &status["health"];
    assert_eq!(
        (&health["state"], &health["in_rotation"]),
        (&"draining".into(), &false.into())
    );
    assert_eq!(
        (&status["healthy"], &status["own_record"]["present"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        status["control"]["registration"],
        serde_json::json!({ "open": false, "error": null })
    );
    agent(&first, &["status"]);

    // After a restart it is still drained, and still knows what it is.
    let worlds = lab.script.lock().worlds().len();
    first.kill();
    first.start();
    first.wait_ready();
    wait_until(SOON, "its world", || {
        lab.script.lock().worlds().len() > worlds && first.status()["control"]["connected"] == true
    });
    wait_until(SOON, "the record to be told gone", || is_known(&first, 1));
    echo(&mut first.host.connect(&towards(&second)).unwrap());
    assert!(!is_recorded(&lab, &first));

    agent(&first, &["drain", "--undo"]);
    wait_until(SOON, "the record to be back", || is_recorded(&lab, &first));
    wait_until(SOON, "the others to know", || is_known(&second, 2));
    assert_eq!(reported(&lab, &first), (vec![None], true));
    echo(&mut second.host.connect(&towards(&first)).unwrap());
    wait_until(SOON, "the status", || first.status()["health"]["in_rotation"] == true);
}

#[test]
fn a_machine_whose_probe_fails_is_registered_again_when_it_is_well() {
    let lab = Lab::start();
    let bundle = lab.bundle();
    let yaml = std::fs::read_to_string(bundle.join("mesh.yaml")).unwrap();
    let probe = "  readinessProbe: {periodSeconds: 1, failureThreshold: 1, httpGet: {port: 8080, path: /}}\n";
    std::fs::write(bundle.join("mesh.yaml"), yaml + probe).unwrap();
    let mut machine = lab.machine("vm");
    let nginx = machine.nginx(8080, "well");
    join(&machine, &bundle);
    machine.start();
    machine.wait_ready();
    wait_until(SOON, "the first report", || {
        reported(&lab, &machine) == (vec![None], true)
    });

    drop(nginx);
    wait_until(SOON, "the registration to be given up", || {
        let (reports, open) = reported(&lab, &machine);
        let reason = reports.last().cloned().flatten().unwrap_or_default();
        !open && reason.contains("127.0.0.1:8080") && !is_recorded(&lab, &machine)
    });
    let status = machine.status();
    assert_eq!(status["own_record"]["findings"], serde_json::json!([]), "{status}");

    let _nginx = machine.nginx(8080, "well again");
    wait_until(SOON, "the record to be back", || is_recorded(&lab, &machine));
    assert_eq!(reported(&lab, &machine), (vec![None], true));
}
