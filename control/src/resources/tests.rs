#![allow(clippy::unwrap_used)]
use super::*;

fn parse(yaml: &str) -> Result<Option<Resource>, Vec<Problem>> {
    Resource::parse(&SourceDocument {
        file: "x.yaml".into(),
        line: 10,
        yaml: yaml.into(),
    })
}

fn first_problem(yaml: &str) -> Problem {
    parse(yaml).unwrap_err().remove(0)
}

#[test]
fn reads_each_kind_and_keeps_it_through_json() {
    for yaml in [
        "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: a, namespace: b}\nspec: {template: {serviceAccount: x}}\n",
        "apiVersion: networking.istio.io/v1beta1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {address: 10.0.0.1, ports: {http: 80}}\n",
        "apiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.example]\n  ports: [{number: 80, name: http, targetPort: 8080}]\n  resolution: STATIC\n  endpoints: [{address: 10.0.0.1}]\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: a}, ports: [{port: 80, targetPort: http}, {port: 81, targetPort: 8081, name: x}]}\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {}\n",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  action: DENY\n  rules:\n  - from: [{source: {principals: ['*']}}]\n    to: [{operation: {ports: ['80']}}]\n    when: [{key: source.ip, values: [10.0.0.0/8]}]\n",
        "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}\n",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, labels: {istio.io/waypoint-for: all}}\nspec:\n  gatewayClassName: istio-waypoint\n  addresses: [{value: 10.0.0.9}, {type: Hostname, value: w.example}]\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n    allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}\n",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/use-waypoint: w}}\n",
    ] {
        let resource = parse(yaml).unwrap_or_else(|p| panic!("{p:?}\n{yaml}")).unwrap();
        let again = Resource::from_json(resource.kind(), &resource.to_json()).unwrap();
        assert_eq!(resource, again);
    }
    assert_eq!(parse("# nothing\n").unwrap(), None);
}

#[test]
fn a_probe_is_kept_and_its_faults_are_named() {
    let group = |probe: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: a}}\nspec:\n  template: {{}}\n  probe:\n    {probe}\n"
        )
    };
    let yaml = group("{periodSeconds: 5, httpGet: {path: /ready, port: 8080}}");
    let resource = parse(&yaml).unwrap().unwrap();
    assert!(
        resource
            .to_json()
            .contains(r#""probe":{"periodSeconds":5,"httpGet":{"path":"/ready","port":8080}}"#)
    );
    let problem = first_problem(&group("tcpSocket: {port: 0}"));
    assert_eq!(
        (problem.line, problem.field.as_str()),
        (16, "spec.probe.tcpSocket.port")
    );
    let problem = first_problem(&group("periodSeconds: 1"));
    assert_eq!((problem.line, problem.field.as_str()), (15, "spec.probe"));
    assert!(problem.message.contains("exactly one"), "{problem:?}");
    let problem = first_problem(&group("tcpSockets: {port: 1}"));
    assert!(problem.message.contains("tcpSockets"), "{problem:?}");
}

#[test]
fn health_is_not_taken_from_what_is_applied() {
    let yaml = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {address: 10.0.0.1}\nstatus: {conditions: [{type: Healthy, status: 'False', message: elsewhere}]}\n";
    let Resource::WorkloadEntry(mut entry) = parse(yaml).unwrap().unwrap() else {
        panic!("not an entry");
    };
    assert_eq!(entry.unhealthy(), None);
    entry.set_unhealthy(Some("status 503"));
    let json = Resource::WorkloadEntry(entry.clone()).to_json();
    let Ok(Resource::WorkloadEntry(again)) = Resource::from_json(Kind::WorkloadEntry, &json) else {
        panic!("{json}");
    };
    assert_eq!(again.unhealthy(), Some("status 503"));
    entry.set_unhealthy(None);
    assert!(!Resource::WorkloadEntry(entry).to_json().contains("status"));
}

#[test]
fn an_unknown_field_is_named_with_its_line() {
    let problem = first_problem(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: a\nspec:\n  hosts: [a.example]\n  prots: []\n",
    );
    assert_eq!((problem.file.as_str(), problem.line), ("x.yaml", 16), "{problem:?}");
    assert!(problem.message.contains("prots"), "{problem:?}");
}

#[test]
fn meaning_is_checked_where_the_field_stands() {
    let problem = first_problem(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: a\nspec:\n  hosts:\n  - ok.example\n  - not a host\n  ports:\n  - {number: 80, name: http}\n",
    );
    assert_eq!(
        (problem.line, problem.field.as_str()),
        (17, "spec.hosts[1]"),
        "{problem:?}"
    );
}

#[test]
fn unsupported_fields_are_errors() {
    for (yaml, field, line) in [
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n  - to:\n    - operation:\n        paths: [/x]\n",
            "spec.rules[0].to[0].operation.paths",
            17,
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  action: CUSTOM\n",
            "spec.action",
            14,
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: NodePort\n  ports: [{port: 1}]\n",
            "spec.type",
            14,
        ),
    ] {
        let problem = first_problem(yaml);
        assert_eq!((problem.field.as_str(), problem.line), (field, line), "{problem:?}");
        assert!(problem.message.contains("not supported"), "{problem:?}");
    }
}

#[test]
fn faults_of_gateways_and_namespaces_are_named() {
    let gateway = |spec: &str| {
        format!("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w}}\nspec:\n  {spec}\n")
    };
    let listener = |listener: &str| {
        gateway(&format!(
            "gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    {listener}"
        ))
    };
    let good = "port: 15008\n    protocol: HBONE";
    for (yaml, field, line) in [
        (
            gateway("gatewayClassName: istio\n  listeners: [{name: m, port: 15008, protocol: HBONE}]"),
            "spec.gatewayClassName",
            14,
        ),
        (
            gateway("gatewayClassName: istio-waypoint\n  listeners: []"),
            "spec.listeners",
            15,
        ),
        (
            gateway(
                "gatewayClassName: istio-waypoint\n  infrastructure: {}\n  listeners: [{name: m, port: 15008, protocol: HBONE}]",
            ),
            "spec.infrastructure",
            15,
        ),
        (listener("port: 443\n    protocol: HBONE"), "spec.listeners[0].port", 17),
        (
            listener("port: 15008\n    protocol: HTTP"),
            "spec.listeners[0].protocol",
            18,
        ),
        (listener(&format!("{good}\n    tls: {{}}")), "spec.listeners[0].tls", 19),
        (
            listener(&format!(
                "{good}\n    allowedRoutes:\n      namespaces:\n        from: Some"
            )),
            "spec.listeners[0].allowedRoutes.namespaces.from",
            21,
        ),
        (
            listener(&format!(
                "{good}\n    allowedRoutes:\n      namespaces: {{from: Selector}}"
            )),
            "spec.listeners[0].allowedRoutes.namespaces",
            20,
        ),
        (
            listener(&format!("{good}\n  addresses: [{{type: IPAddress, value: w.example}}]")),
            "spec.addresses[0].value",
            19,
        ),
        (
            listener(&format!("{good}\n  addresses: [{{type: Named, value: w}}]")),
            "spec.addresses[0].type",
            19,
        ),
        (
            listener(good).replace("name: w", "name: w, labels: {istio.io/waypoint-for: pods}"),
            "metadata.labels.istio.io/waypoint-for",
            12,
        ),
        (
            listener(good).replace(
                "name: w",
                "name: w, annotations: {ambient.istio.io/waypoint-inbound-binding: TCP}",
            ),
            "metadata.annotations.ambient.istio.io/waypoint-inbound-binding",
            12,
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  namespace: b\n".into(),
            "metadata.namespace",
            14,
        ),
    ] {
        let problem = first_problem(&yaml);
        assert_eq!(
            (problem.field.as_str(), problem.line),
            (field, line),
            "{problem:?}\n{yaml}"
        );
    }
    assert!(first_problem(&listener("prot: 1")).message.contains("prot"));
}

#[test]
fn the_reserved_namespace_is_refused() {
    let problem = first_problem(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata:\n  name: a\n  namespace: mesh-system\nspec: {template: {}}\n",
    );
    assert_eq!((problem.field.as_str(), problem.line), ("metadata.namespace", 14));
}

#[test]
fn syntax_errors_and_foreign_kinds() {
    assert_eq!(first_problem("kind: [\n").file, "x.yaml");
    let problem = first_problem("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n");
    assert_eq!(problem.line, 11);
    assert!(problem.message.contains("Deployment"));
}
