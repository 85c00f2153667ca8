//! From a bundle to a member, and back again after too long a time off.

use mesh_lab::wait_until;
use mesh_proto::type_url;

use crate::fixture::{Machine, SOON, binary, text};
use crate::lab::{IDENTITY, Lab, join, jwt, try_join};
use crate::script::{Certificate, Register, label, text as metadata};
use tonic::Code;

#[test]
fn a_bundle_makes_a_member_and_the_token_is_not_needed_again() {
    let lab = Lab::start();
    let mut machine = lab.machine("vm");
    let bundle = lab.bundle();
    join(&machine, &bundle);
    std::fs::remove_dir_all(&bundle).unwrap();
    let jwt = lab.script.lock().jwt.clone();
    for file in std::fs::read_dir(machine.dir.join("state")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(&jwt), "the token was stored");
    }
    machine.start();
    machine.wait_ready();
    let status = machine.status();
    assert_eq!(status["identity"], IDENTITY);
    assert_eq!(status["workload"], format!("shop/{}", lab.record(&machine)));
    assert_eq!(
        (&status["control"]["kind"], &status["own_record"]["findings"]),
        (&"istiod".into(), &serde_json::json!([]))
    );
    {
        let script = lab.script.lock();
        let first = Certificate {
            by_jwt: true,
            cluster: "c1".into(),
            asked: IDENTITY.into(),
        };
        assert_eq!(script.certificates, [first]);
        let (world, stream) = (script.worlds()[0], script.registrations()[0]);
        assert_eq!((&*world.client, &*stream.client), (IDENTITY, IDENTITY));
        let name = lab.record(&machine);
        let id = format!("ztunnel~{}~{name}.shop~shop.svc.cluster.local", machine.ip4);
        assert_eq!((&stream.node.id, &world.node.id), (&id, &id));
        let of = |name| metadata(&stream.node, name).unwrap_or_default();
        assert_eq!(
            (of("NAME"), of("NETWORK"), of("MESH_ID")),
            (name, "vms".into(), "m1".into())
        );
        assert_eq!(
            label(&stream.node, "networking.istio.io/tunnel").as_deref(),
            Some("http")
        );
        // Nothing that is mesh-control's own: istiod refuses a stream that asks for types it does not know.
        let asked: Vec<_> = world.held.keys().map(String::as_str).collect();
        assert_eq!(asked, [type_url::AUTHORIZATION, type_url::ADDRESS]);
        assert!(stream.held.is_empty() && world.health.is_empty());
    }

    // After a reboot there is no token anywhere, and none is asked for.
    machine.kill();
    machine.start();
    machine.wait_ready();
    let script = lab.script.lock();
    assert_eq!(script.certificates.len(), 1);
    assert_eq!((script.worlds().len(), script.registrations().len()), (2, 2));
}

#[test]
fn each_bad_bundle_has_its_own_error_and_leaves_nothing() {
    let lab = Lab::start();
    let machine = lab.machine("vm");
    let refuse = |change: &dyn Fn(&std::path::Path), words: &str, code: i32| {
        let bundle = lab.bundle();
        change(&bundle);
        let output = try_join(&machine, &bundle, &[]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{words}: {said}");
        assert!(said.contains(words), "expected {words:?} in: {said}");
        assert!(!machine.dir.join("state/membership.json").exists(), "{words}");
    };
    let write =
        |name: &'static str, text: String| move |dir: &std::path::Path| std::fs::write(dir.join(name), &text).unwrap();
    refuse(
        &|dir| std::fs::remove_file(dir.join("mesh.yaml")).unwrap(),
        "mesh.yaml is missing",
        1,
    );
    refuse(&write("hosts", String::new()), "--istiod-address", 1);
    refuse(
        &write("istio-token", jwt("istio-ca", -60)),
        "istioctl x workload entry configure --name orders --namespace shop --clusterID c1 --autoregister",
        6,
    );
    refuse(&write("istio-token", jwt("vault", 60)), "audience", 1);
    refuse(
        &write("istio-token", jwt("istio-ca", 61)),
        "does not accept istio-token",
        1,
    );
    refuse(
        &write("root-cert.pem", crate::istiod::Ca::new().pem),
        "not signed by an anchor of root-cert.pem",
        1,
    );
    refuse(&|dir| std::fs::remove_dir_all(dir).unwrap(), "reading", 1);

    // istiod itself, met under another name than its certificate's, is not believed.
    let bundle = lab.bundle();
    let yaml = std::fs::read_to_string(bundle.join("mesh.yaml")).unwrap();
    std::fs::write(
        bundle.join("mesh.yaml"),
        yaml.replace("istiod.istio-system", "istiod.elsewhere"),
    )
    .unwrap();
    let address = std::fs::read_to_string(bundle.join("hosts")).unwrap();
    let address = format!("{}:15012", address.split_whitespace().next().unwrap());
    let output = try_join(&machine, &bundle, &["--istiod-address", &address]);
    assert!(
        !output.status.success() && text(&output).contains("istiod.elsewhere"),
        "{}",
        text(&output)
    );
    assert_eq!(
        lab.script.lock().certificates.iter().filter(|one| one.by_jwt).count(),
        1
    );

    // With the address given, no hosts is needed; the address that is registered may be named too.
    let bundle = lab.bundle();
    std::fs::write(bundle.join("hosts"), "").unwrap();
    let output = try_join(
        &machine,
        &bundle,
        &["--istiod-address", &address, "--address", "192.0.2.7"],
    );
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("shop/orders-192.0.2.7-vms"), "{}", text(&output));
    let again = try_join(&machine, &lab.bundle(), &[]);
    assert!(
        !again.status.success() && text(&again).contains("certificate is good"),
        "{}",
        text(&again)
    );
}

#[test]
fn a_packed_bundle_joins_through_the_daemon() {
    let lab = Lab::start();
    let mut machine = lab.machine("vm");
    machine.start();
    wait_until(SOON, "the agent to wait", || machine.status()["state"] == "waiting");
    let pack = |bundle: &std::path::Path| {
        let mut command = machine.host.command(binary("meshctl"));
        command.args(["token", "pack", "--istio-bundle"]).arg(bundle);
        command.output().unwrap()
    };
    let packed = pack(&lab.bundle());
    assert!(packed.status.success(), "{}", text(&packed));
    let token = String::from_utf8(packed.stdout).unwrap();
    assert!(token.starts_with("mesh1.") && token.lines().count() == 1, "{token}");
    machine.join(&token);
    machine.wait_ready();

    let stale = lab.bundle();
    std::fs::write(stale.join("istio-token"), jwt("istio-ca", -1)).unwrap();
    let refused = pack(&stale);
    assert!(
        !refused.status.success() && text(&refused).contains("expired"),
        "{}",
        text(&refused)
    );
}

#[test]
fn a_certificate_is_renewed_by_itself_over_mtls() {
    let lab = Lab::start();
    lab.script.lock().lifetime = 8;
    let machine = lab.member();
    let serial = || machine.status()["certificate"]["serial"].clone();
    let first = serial();
    wait_until(SOON, "the certificate to be renewed", || {
        serial() != first && serial().is_string()
    });
    let script = lab.script.lock();
    let by_jwt: Vec<_> = script.certificates.iter().map(|one| one.by_jwt).collect();
    assert_eq!(by_jwt.first(), Some(&true));
    assert!(
        by_jwt.len() > 1 && by_jwt[1..].iter().all(|by_jwt| !by_jwt),
        "{by_jwt:?}"
    );
}

#[test]
fn after_too_long_a_time_off_a_fresh_bundle_is_asked_for_and_taken() {
    let mut lab = Lab::start();
    lab.script.lock().lifetime = 6;
    let mut machine = lab.member();
    let name = machine.status()["workload"].clone();
    machine.kill();
    lab.stop_istiod();
    machine.start();
    wait_until(SOON, "the status to ask for a bundle", || {
        machine.status()["needs_bundle"].is_string()
    });
    let command = "istioctl x workload entry configure --name orders --namespace shop --clusterID c1 --autoregister";
    machine.wait_log(&["ERROR", command]);
    let output = machine.try_agent(&["status"]);
    assert_eq!(output.status.code(), Some(6), "{}", text(&output));
    assert!(text(&output).contains(command), "{}", text(&output));

    // Nothing of another mesh is taken instead.
    lab.start_istiod();
    let other = lab.bundle();
    let yaml = std::fs::read_to_string(other.join("mesh.yaml")).unwrap();
    std::fs::write(
        other.join("mesh.yaml"),
        yaml.replace("TRUST_DOMAIN: example.org", "TRUST_DOMAIN: other.org"),
    )
    .unwrap();
    let output = try_join(&machine, &other, &[]);
    assert!(
        !output.status.success() && text(&output).contains("mesh-agent leave"),
        "{}",
        text(&output)
    );

    let before = lab.script.lock().streams.len();
    lab.script.lock().lifetime = 86_400;
    join(&machine, &lab.bundle());
    machine.wait_ready();
    assert_eq!(machine.status()["workload"], name);
    assert!(lab.script.lock().streams.len() > before);
    assert_eq!(
        machine.try_agent(&["status"]).status.code(),
        Some(0),
        "{}",
        machine.status()
    );
}

#[test]
fn what_is_wrong_with_the_own_record_is_told() {
    for (register, words) in [
        (Register::Not, "istiod has no record of this machine"),
        (Register::WithoutTunnel, "networking.istio.io/tunnel=http"),
        (Register::AsDefaultAccount, "spiffe://example.org/ns/shop/sa/default"),
    ] {
        let lab = Lab::start();
        lab.script.lock().register = register;
        let mut machine = lab.machine("vm");
        join(&machine, &lab.bundle());
        machine.start();
        wait_until(SOON, words, || told(&machine, words));
        machine.wait_log(&["WARN", words]);
        assert_eq!(machine.try_agent(&["status"]).status.code(), Some(1));
        if register == Register::Not {
            // Once it is there, and right, nothing is wrong any more.
            lab.script.lock().register = Register::Properly;
            lab.script.close_streams();
            wait_until(SOON, "the record to be right", || machine.status()["healthy"] == true);
        }
    }
}

fn told(machine: &Machine, words: &str) -> bool {
    let status = machine.status();
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    problems
        .iter()
        .any(|problem| problem.as_str().is_some_and(|text| text.contains(words)))
}

#[test]
fn a_refusal_of_istiod_is_explained() {
    let lab = Lab::start();
    let mut machine = lab.machine("vm");
    join(&machine, &lab.bundle());
    for (code, message, words) in [
        (
            Code::FailedPrecondition,
            "cannot find WorkloadGroup",
            "WorkloadGroup shop/orders",
        ),
        (
            Code::PermissionDenied,
            "no identities match",
            "does not accept this machine as shop/orders",
        ),
        (
            Code::Unauthenticated,
            "authentication failure",
            "make a fresh bundle: istioctl",
        ),
    ] {
        lab.script.lock().no_streams = Some((code, message));
        machine.start();
        machine.wait_log(&["WARN", message, words]);
        wait_until(SOON, words, || told(&machine, words));
        machine.kill();
    }
    lab.script.lock().no_streams = None;
    machine.start();
    machine.wait_ready();
}

#[test]
fn without_a_daemon_a_machine_joins_again_once_its_certificate_has_expired() {
    let lab = Lab::start();
    lab.script.lock().lifetime = 2;
    let machine = lab.machine("vm");
    join(&machine, &lab.bundle());
    let bundle = lab.bundle();
    wait_until(SOON, "the certificate to expire", || {
        try_join(&machine, &bundle, &[]).status.success()
    });
    let by_jwt = lab.script.lock().certificates.iter().filter(|one| one.by_jwt).count();
    assert_eq!(by_jwt, 2, "only an expired certificate is asked for again");
}
