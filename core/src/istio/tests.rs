#![allow(clippy::unwrap_used)]
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_proto::wkt::{Struct, value::Kind};
use proptest::prelude::*;

use super::*;
use crate::token;

const NOW: u64 = 1_800_000_000;

const CLUSTER_ENV: &str = "\
CANONICAL_REVISION='v2'
ISTIO_INBOUND_PORTS='*'
ISTIO_META_CLUSTER_ID='c1'
ISTIO_NAMESPACE='shop'
ISTIO_SERVICE='orders.shop'
ISTIO_SVC_IP='10.0.0.7'
SERVICE_ACCOUNT='orders'
NOTE='it'\"'\"'s fine'
";
const MESH_YAML: &str = r#"
defaultConfig:
  discoveryAddress: istiod-canary.istio-system.svc:15012
  tracing: {zipkin: {address: "z:9411"}}
  proxyMetadata:
    CANONICAL_REVISION: v2
    CANONICAL_SERVICE: orders
    IDENTITY_PATH_PREFIX: "x"
    ISTIO_META_AUTO_REGISTER_GROUP: orders
    ISTIO_META_CLUSTER_ID: c1
    ISTIO_META_DNS_CAPTURE: "true"
    ISTIO_META_MESH_ID: m1
    ISTIO_META_NETWORK: vms
    ISTIO_META_WORKLOAD_NAME: orders
    ISTIO_METAJSON_LABELS: '{"app":"orders","istio-locality":"eu.a","service.istio.io/canonical-name":"orders"}'
    POD_NAMESPACE: shop
    SERVICE_ACCOUNT: orders
    TRUST_DOMAIN: example.org
  readinessProbe: {httpGet: {port: 8080, path: /ok}}
"#;
const ROOT: &str = "-----BEGIN CERTIFICATE-----\nAQID\nBAUG\n-----END CERTIFICATE-----\n";

fn jwt(payload: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}"), part(payload), part("signature"))
}

fn good_jwt() -> String {
    let payload = format!(
        r#"{{"iss":"k8s","aud":["istio-ca"],"sub":"system:serviceaccount:shop:orders","exp":{}}}"#,
        NOW + 60
    );
    jwt(&payload)
}

fn files() -> Files {
    Files {
        cluster_env: Some(CLUSTER_ENV.into()),
        mesh_yaml: Some(MESH_YAML.into()),
        root_cert: Some(ROOT.into()),
        istio_token: Some(good_jwt() + "\n"),
        hosts: Some("192.0.2.9 istiod-canary.istio-system.svc\n".into()),
    }
}

fn refused(change: impl FnOnce(&mut Files)) -> BundleError {
    let mut files = files();
    change(&mut files);
    match read(&files, None) {
        Ok((_, bundle)) => check(&bundle, NOW).unwrap_err(),
        Err(error) => error,
    }
}

#[test]
fn a_bundle_says_who_we_are_and_where_istiod_is() {
    let (addresses, bundle) = read(&files(), None).unwrap();
    assert_eq!(addresses, ["192.0.2.9:15012", "istiod-canary.istio-system.svc:15012"]);
    assert_eq!(bundle.server_name, "istiod-canary.istio-system.svc");
    let identity = check(&bundle, NOW).unwrap();
    assert_eq!(identity.to_string(), "spiffe://example.org/ns/shop/sa/orders");
    assert_eq!(
        (
            bundle.group.as_str(),
            bundle.network.as_str(),
            bundle.cluster_id.as_str()
        ),
        ("orders", "vms", "c1")
    );
    assert_eq!(bundle.address, "10.0.0.7");
    assert_eq!(bundle.anchors, [vec![1, 2, 3, 4, 5, 6]]);
    assert_eq!(bundle.readiness_probe, r#"{"httpGet":{"path":"/ok","port":8080}}"#);
    assert!(!bundle.proxy_metadata.contains_key("IDENTITY_PATH_PREFIX"));

    // By another way, the name in the certificate is the same.
    let (addresses, bundle) = read(&files(), Some("lb.example.com:15012")).unwrap();
    assert_eq!(
        (addresses, bundle.server_name.as_str()),
        (
            vec!["lb.example.com:15012".to_owned()],
            "istiod-canary.istio-system.svc"
        )
    );
}

#[test]
fn what_istioctl_leaves_empty_has_istios_defaults() {
    let mut files = files();
    let yaml = MESH_YAML.replace("TRUST_DOMAIN: example.org", "TRUST_DOMAIN: \"\"");
    files.mesh_yaml = Some(yaml.replace("  discoveryAddress: istiod-canary.istio-system.svc:15012\n", ""));
    files.hosts = Some("fd00::9 istiod.istio-system.svc".into());
    let (addresses, bundle) = read(&files, None).unwrap();
    assert_eq!(addresses, ["[fd00::9]:15012", "istiod.istio-system.svc:15012"]);
    assert_eq!(
        (bundle.trust_domain.as_str(), bundle.server_name.as_str()),
        ("cluster.local", "istiod.istio-system.svc")
    );
}

#[test]
fn each_missing_file_is_named() {
    for name in Files::NAMES {
        let error = refused(|files| *files.slot(name).unwrap() = None);
        assert_eq!(error, BundleError::Missing(name));
        let error = refused(|files| *files.slot(name).unwrap() = Some(" \n".into()));
        let expected = if name == "hosts" {
            BundleError::NoAddress
        } else {
            BundleError::Empty(name)
        };
        assert_eq!(error, expected);
        let error = refused(|files| *files.slot(name).unwrap() = Some("x".repeat(MAX_FILE + 1)));
        assert_eq!(error, BundleError::TooLong(name));
    }
    // Where the address is given, hosts may be empty, but is still one of the five.
    let mut files = files();
    files.hosts = Some(String::new());
    assert!(read(&files, Some("lb.example.com:15012")).is_ok());
}

#[test]
fn damage_is_told_by_file() {
    let told = |change: fn(&mut Files), file: &str, words: &str| {
        let text = refused(change).to_string();
        assert!(text.starts_with(file) && text.contains(words), "{text}");
    };
    told(
        |files| files.cluster_env = Some("A='b".into()),
        "cluster.env",
        "line 1: a quote is not closed",
    );
    told(
        |files| files.cluster_env = Some("\nwhat".into()),
        "cluster.env",
        "line 2: it is not",
    );
    told(
        |files| files.cluster_env = Some("A=b".into()),
        "cluster.env",
        "ISTIO_NAMESPACE",
    );
    told(|files| files.mesh_yaml = Some("a: [".into()), "mesh.yaml", "");
    told(
        |files| files.mesh_yaml = Some("a: b".into()),
        "mesh.yaml",
        "defaultConfig",
    );
    told(
        |files| files.root_cert = Some("hello".into()),
        "root-cert.pem",
        "no PEM certificate",
    );
    told(
        |files| files.root_cert = Some(ROOT[..40].into()),
        "root-cert.pem",
        "cut off",
    );
    told(
        |files| files.root_cert = Some(ROOT.replace("AQID", "A!ID")),
        "root-cert.pem",
        "damaged",
    );
    told(
        |files| files.istio_token = Some("a.b".into()),
        "istio-token",
        "not a JWT",
    );
    told(
        |files| files.istio_token = Some("a.!.c".into()),
        "istio-token",
        "base64url",
    );
    told(
        |files| files.hosts = Some("192.0.2.9 other.svc".into()),
        "hosts",
        "istiod-canary.istio-system.svc",
    );
    told(
        |files| files.mesh_yaml = Some(MESH_YAML.replace("AUTO_REGISTER_GROUP", "X")),
        "mesh.yaml",
        "--autoregister",
    );
}

#[test]
fn a_token_that_istiod_would_refuse_is_told_by_cause() {
    let with = |payload: &str| {
        let token = jwt(payload);
        refused(|files| files.istio_token = Some(token))
    };
    let of = r#""sub":"system:serviceaccount:shop:orders""#;
    let stale = with(&format!(r#"{{"aud":"istio-ca",{of},"exp":{}}}"#, NOW - 600));
    assert!(stale.is_stale());
    assert_eq!(
        stale.to_string(),
        "istio-token expired 10 min ago (if the clock of this machine is right); make a fresh bundle: istioctl x workload entry \
         configure --name orders --namespace shop --clusterID c1 --autoregister -o DIR"
    );
    let other = with(&format!(r#"{{"aud":["vault"],{of},"exp":{}}}"#, NOW + 60));
    assert_eq!(other, BundleError::Audience(vec!["vault".into()]));
    let mixed = with(&format!(
        r#"{{"aud":["istio-ca"],"sub":"system:serviceaccount:shop:web","exp":{}}}"#,
        NOW + 60
    ));
    assert!(mixed.to_string().contains("files of two bundles are mixed"), "{mixed}");
}

#[test]
fn a_packed_bundle_is_a_token_that_fits_a_terminals_line() {
    let mut files = files();
    // Sizes as in practice: an RSA-signed token, an RSA root.
    files.root_cert = Some(pem(&[7; 800]));
    files.istio_token = Some(format!("{}{}", good_jwt(), "A".repeat(800)));
    let text = pack(&files, None, NOW).unwrap();
    assert!(text.len() < 4095, "{}", text.len());
    let token = token::decode(&text).unwrap();
    let (addresses, bundle) = read(&files, None).unwrap();
    assert_eq!((token.addresses, token.istio), (addresses, Some(bundle)));
    assert!(pack(&files, None, NOW + 60).unwrap_err().is_stale());
}

#[test]
fn the_entrys_name_is_istiods() {
    let v4 = "10.0.0.7".parse().unwrap();
    assert_eq!(entry_name("orders", v4, ""), "orders-10.0.0.7");
    assert_eq!(entry_name("orders", v4, "vms"), "orders-10.0.0.7-vms");
    assert_eq!(entry_name("orders", "fd00::7".parse().unwrap(), ""), "orders-fd00--7");
    let long = entry_name(&"g".repeat(300), v4, "n");
    assert_eq!((long.len(), long.ends_with("g-10.0.0.7-n")), (253, true));
}

#[test]
fn the_nodes_metadata_is_what_istiod_registers_by() {
    let (_, bundle) = read(&files(), None).unwrap();
    let registration = Registration {
        registers: true,
        name: "orders-10.0.0.7-vms",
        namespace: &bundle.namespace,
        service_account: &bundle.service_account,
        group: &bundle.group,
        cluster_id: &bundle.cluster_id,
        network: &bundle.network,
        address: "10.0.0.7".parse().unwrap(),
        proxy_metadata: &bundle.proxy_metadata,
        readiness_probe: &bundle.readiness_probe,
    };
    let found = metadata(&registration);
    for (path, expected) in [
        ("NAME", "orders-10.0.0.7-vms"),
        ("NAMESPACE", "shop"),
        ("SERVICE_ACCOUNT", "orders"),
        ("AUTO_REGISTER_GROUP", "orders"),
        ("INSTANCE_IPS", "10.0.0.7"),
        ("NETWORK", "vms"),
        ("CLUSTER_ID", "c1"),
        ("MESH_ID", "m1"),
        ("WORKLOAD_NAME", "orders"),
        ("DNS_CAPTURE", "true"),
        ("LABELS/app", "orders"),
        ("LABELS/networking.istio.io|tunnel", "http"),
        ("LABELS/service.istio.io|canonical-name", "orders"),
        ("LABELS/service.istio.io|canonical-revision", "v2"),
        ("PROXY_CONFIG/readinessProbe/httpGet/path", "/ok"),
    ] {
        assert_eq!(at(&found, path).as_deref(), Some(expected), "{path}");
    }
    // Who must not be registered says all of that but the group, which the bundle names too.
    let mut unregistered = found;
    unregistered.fields.remove("AUTO_REGISTER_GROUP").unwrap();
    let registration = Registration {
        registers: false,
        ..registration
    };
    assert_eq!(metadata(&registration), unregistered);
    let place = locality(&bundle.proxy_metadata).unwrap();
    assert_eq!(
        (place.region.as_str(), place.zone.as_str(), place.sub_zone.as_str()),
        ("eu", "a", "")
    );
    assert_eq!(locality(&Default::default()), None);
}

#[test]
fn a_tunnel_label_of_the_group_stays() {
    let labels = r#"{"networking.istio.io/tunnel":"none"}"#.to_owned();
    let proxy_metadata = [("ISTIO_METAJSON_LABELS".to_owned(), labels)].into();
    let found = metadata(&Registration {
        registers: true,
        name: "n",
        namespace: "s",
        service_account: "a",
        group: "g",
        cluster_id: "",
        network: "",
        address: "10.0.0.7".parse().unwrap(),
        proxy_metadata: &proxy_metadata,
        readiness_probe: "",
    });
    assert_eq!(at(&found, "LABELS/networking.istio.io|tunnel").as_deref(), Some("none"));
    assert!(!found.fields.contains_key("PROXY_CONFIG"));
}

/// The text at a path of names; `|` stands for a slash in one.
fn at(fields: &Struct, path: &str) -> Option<String> {
    let (head, rest) = path
        .split_once('/')
        .map_or((path, None), |(head, rest)| (head, Some(rest)));
    match (fields.fields.get(&head.replace('|', "/"))?.kind.as_ref()?, rest) {
        (Kind::StringValue(text), None) => Some(text.clone()),
        (Kind::StructValue(inner), Some(rest)) => at(inner, rest),
        _ => None,
    }
}

proptest! {
    #[test]
    fn never_panics(env in any::<String>(), yaml in any::<String>(), root in any::<String>(), token in any::<String>(), hosts in any::<String>()) {
        let files = Files {
            cluster_env: Some(env),
            mesh_yaml: Some(yaml),
            root_cert: Some(root),
            istio_token: Some(token),
            hosts: Some(hosts),
        };
        if let Ok((_, bundle)) = read(&files, None) {
            let _ = check(&bundle, NOW);
        }
    }

    #[test]
    fn quoted_values_read_back(value in "[ -~]{0,40}") {
        // As istioctl quotes.
        let line = format!("KEY='{}'", value.replace('\'', r#"'"'"'"#));
        prop_assert_eq!(&super::env::parse(&line).unwrap()["KEY"], &value);
    }
}
