#![allow(clippy::unwrap_used)]
use super::*;
use mesh_proto::mesh as proto;

fn tcp() -> Probe {
    Probe {
        tcp_socket: Some(TcpSocket {
            port: 80,
            ..TcpSocket::default()
        }),
        ..Probe::default()
    }
}

fn failed() -> Result<(), String> {
    Err("no".to_owned())
}

#[test]
fn numbers_that_are_not_given_have_istios_defaults() {
    let probe = tcp();
    assert_eq!(probe.initial_delay(), Duration::ZERO);
    assert_eq!(probe.period(), Duration::from_secs(10));
    assert_eq!(probe.timeout(), Duration::from_secs(1));
    assert_eq!((probe.success_threshold(), probe.failure_threshold()), (1, 1));
}

#[test]
fn one_result_is_enough_by_default_and_only_changes_are_told() {
    let mut tracker = Tracker::new(&tcp());
    assert_eq!(tracker.result(Ok(())), Some(Verdict::Healthy));
    assert_eq!(tracker.result(Ok(())), None);
    assert_eq!(tracker.result(failed()), Some(Verdict::Unhealthy("no".into())));
    assert_eq!(tracker.result(Err("other".into())), None);
    assert_eq!(tracker.result(Ok(())), Some(Verdict::Healthy));
}

#[test]
fn thresholds_count_results_in_a_row() {
    let probe = Probe {
        success_threshold: 2,
        failure_threshold: 3,
        ..tcp()
    };
    let mut tracker = Tracker::new(&probe);
    for result in [failed(), failed(), Ok(()), failed(), failed()] {
        assert_eq!(tracker.result(result), None, "nothing is known yet");
    }
    assert!(matches!(tracker.result(failed()), Some(Verdict::Unhealthy(_))));
    assert_eq!(tracker.result(Ok(())), None);
    assert_eq!(tracker.result(failed()), None);
    assert_eq!(tracker.result(Ok(())), None);
    assert_eq!(tracker.result(Ok(())), Some(Verdict::Healthy));
    assert_eq!(tracker.result(failed()), None);
    assert_eq!(tracker.result(failed()), None);
    assert!(matches!(tracker.result(failed()), Some(Verdict::Unhealthy(_))));
}

#[test]
fn reasons_are_short_and_of_one_line() {
    let mut tracker = Tracker::new(&tcp());
    let Some(Verdict::Unhealthy(reason)) = tracker.result(Err(format!("a\nb\x1b[2J{}", "é".repeat(1000)))) else {
        panic!("not unhealthy");
    };
    assert!(reason.starts_with("a b [2J") && reason.len() <= REASON);
}

#[test]
fn draining_is_reported_before_the_verdict() {
    let mut health = Health::default();
    assert_eq!((health.report(), health.in_rotation()), (None, true));
    health.verdict = Verdict::Unhealthy("status 503".into());
    assert_eq!(
        (health.report(), health.in_rotation()),
        (Some(Err("status 503")), false)
    );
    health.draining = Some(1);
    assert_eq!(health.report(), Some(Err(DRAINING)));
    health.verdict = Verdict::Healthy;
    assert_eq!((health.report(), health.in_rotation()), (Some(Err(DRAINING)), false));
    health.draining = None;
    assert_eq!((health.report(), health.in_rotation()), (Some(Ok(())), true));
}

#[test]
fn the_last_record_is_kept_from_leaving_rotation_until_being_back() {
    let (first, second) = (1, 2);
    let mut held = kept(None, Some(&first), true);
    assert_eq!(held, None, "in rotation the world alone counts");
    held = kept(held, None, true);
    assert_eq!(held, None);
    held = kept(held, Some(&first), false);
    held = kept(held, Some(&second), false);
    assert_eq!(held, Some(second));
    held = kept(held, None, false);
    held = kept(held, None, true);
    assert_eq!(held, Some(second), "registering again takes a moment");
    held = kept(held, Some(&first), true);
    assert_eq!(held, None);
}

#[test]
fn istios_own_form_is_read() {
    let text = r#"{"initialDelaySeconds": 5, "periodSeconds": 3, "failureThreshold": 2, "httpGet":
        {"scheme": "HTTPS", "host": "127.0.0.1", "path": "/ready?x", "port": 8443, "httpHeaders": [{"name": "X-Probe", "value": "1"}]}}"#;
    let config: proto::Probe = {
        let probe: Probe = serde_json::from_str(text).unwrap();
        assert!(probe.check().is_empty());
        assert_eq!(probe.describe(), "https://127.0.0.1:8443/ready?x");
        (&probe).into()
    };
    let probe = Probe::try_from(config).unwrap();
    assert_eq!(
        serde_json::to_value(&probe).unwrap(),
        serde_json::from_str::<serde_json::Value>(text).unwrap()
    );
}

#[test]
fn every_method_crosses_the_wire() {
    for text in [
        r#"{"tcpSocket": {"port": 1}}"#,
        r#"{"grpc": {"port": 65535, "service": "orders"}}"#,
        r#"{"exec": {"command": ["/bin/true", "x y"]}}"#,
    ] {
        let probe: Probe = serde_json::from_str(text).unwrap();
        assert_eq!(Probe::try_from(proto::Probe::from(&probe)).unwrap(), probe);
    }
}

#[test]
fn faults_name_their_field() {
    for (text, field) in [
        (r#"{}"#, ""),
        (r#"{"tcpSocket": {"port": 1}, "grpc": {"port": 1}}"#, ""),
        (r#"{"tcpSocket": {"port": 0}}"#, "tcpSocket.port"),
        (r#"{"grpc": {"port": 65536}}"#, "grpc.port"),
        (r#"{"tcpSocket": {"port": 1}, "periodSeconds": 86401}"#, "periodSeconds"),
        (
            r#"{"tcpSocket": {"port": 1, "host": "other.example.com"}}"#,
            "tcpSocket.host",
        ),
        (r#"{"httpGet": {"port": 1, "scheme": "FTP"}}"#, "httpGet.scheme"),
        (r#"{"httpGet": {"port": 1, "path": "ready"}}"#, "httpGet.path"),
        (r#"{"httpGet": {"port": 1, "path": "/a b"}}"#, "httpGet.path"),
        (
            r#"{"httpGet": {"port": 1, "httpHeaders": [{"name": "a:", "value": ""}]}}"#,
            "httpGet.httpHeaders",
        ),
        (
            r#"{"httpGet": {"port": 1, "httpHeaders": [{"name": "a", "value": "x\r\ny: z"}]}}"#,
            "httpGet.httpHeaders",
        ),
        (r#"{"exec": {"command": []}}"#, "exec.command"),
        (r#"{"exec": {"command": ["sh", "-c", "true"]}}"#, "exec.command"),
    ] {
        let probe: Probe = serde_json::from_str(text).unwrap();
        let faults = probe.check();
        assert_eq!(faults.first().map(|fault| fault.field), Some(field), "{text}");
        // Two methods cannot be said on the wire; the rest is refused there too.
        if text.matches("port").count() < 2 {
            assert!(Probe::try_from(proto::Probe::from(&probe)).is_err(), "{text}");
        }
    }
    assert!(serde_json::from_str::<Probe>(r#"{"tcpSocket": {"port": 1}, "perodSeconds": 1}"#).is_err());
}
