use proptest::prelude::*;

use super::plaintext::compile;
use super::*;
use crate::world::tests::{endpoint, service, workload};
use crate::world::{Delta, World};

/// A second evaluator, written down from the tables alone, slow and plain.
mod naive {
    use super::*;

    pub(super) fn allowed(world: &World, workload: &Workload, c: &Connection) -> bool {
        let mut policies = Vec::new();
        for policy in world.policies() {
            let named = workload.authorization_policies.contains(&policy.key);
            let applies = match policy.scope {
                Scope::Global => true,
                Scope::Namespace => policy.namespace == workload.namespace,
                Scope::WorkloadSelector => named,
            };
            if applies && !policy.dry_run {
                policies.push(policy.clone());
            }
        }
        for policy in &policies {
            if policy.action == Action::Deny && policy_matches(policy, c) {
                return false;
            }
        }
        for key in &workload.authorization_policies {
            if world.policy(key).is_none() {
                return false;
            }
        }
        let allows: Vec<_> = policies
            .iter()
            .filter(|policy| policy.action == Action::Allow)
            .collect();
        allows.is_empty() || allows.iter().any(|policy| policy_matches(policy, c))
    }

    fn policy_matches(policy: &Policy, c: &Connection) -> bool {
        for rule in &policy.rules {
            let mut all = true;
            for clause in rule {
                let mut any = clause.is_empty();
                for one in clause {
                    any |= match_matches(one, c);
                }
                all &= any;
            }
            if all {
                return true;
            }
        }
        false
    }

    fn match_matches(m: &Match, c: &Connection) -> bool {
        let empty = m.namespaces.len()
            + m.not_namespaces.len()
            + m.principals.len()
            + m.not_principals.len()
            + m.source_ips.len()
            + m.not_source_ips.len()
            + m.destination_ips.len()
            + m.not_destination_ips.len()
            + m.destination_ports.len()
            + m.not_destination_ports.len()
            + m.service_accounts.len()
            + m.not_service_accounts.len()
            == 0;
        if empty {
            return false;
        }
        let principal = c.identity.as_ref().map(|i| i.to_string().replace("spiffe://", ""));
        let namespace = c.identity.as_ref().map_or(String::new(), |i| i.namespace().to_owned());
        let text = |m: &StringMatch, s: &str| match m {
            StringMatch::Exact(e) => s == &**e,
            StringMatch::Prefix(p) => s.starts_with(&**p),
            StringMatch::Suffix(p) => s.ends_with(&**p),
            StringMatch::Presence => !s.is_empty(),
        };
        let principal_hits = |m: &StringMatch| principal.as_ref().is_some_and(|p| text(m, p));
        let account_hits = |a: &(Arc<str>, Arc<str>)| {
            c.identity
                .as_ref()
                .is_some_and(|i| i.namespace() == &*a.0 && i.service_account() == &*a.1)
        };
        let ok = |positive: Vec<bool>, negative: Vec<bool>| {
            (positive.is_empty() || positive.contains(&true)) && !negative.contains(&true)
        };
        ok(
            m.namespaces.iter().map(|m| text(m, &namespace)).collect(),
            m.not_namespaces.iter().map(|m| text(m, &namespace)).collect(),
        ) && ok(
            m.principals.iter().map(principal_hits).collect(),
            m.not_principals.iter().map(principal_hits).collect(),
        ) && ok(
            m.source_ips.iter().map(|n| n.contains(&c.source.ip())).collect(),
            m.not_source_ips.iter().map(|n| n.contains(&c.source.ip())).collect(),
        ) && ok(
            m.destination_ips
                .iter()
                .map(|n| n.contains(&c.destination.ip()))
                .collect(),
            m.not_destination_ips
                .iter()
                .map(|n| n.contains(&c.destination.ip()))
                .collect(),
        ) && ok(
            m.destination_ports.iter().map(|p| *p == c.destination.port()).collect(),
            m.not_destination_ports
                .iter()
                .map(|p| *p == c.destination.port())
                .collect(),
        ) && ok(
            m.service_accounts.iter().map(account_hits).collect(),
            m.not_service_accounts.iter().map(account_hits).collect(),
        )
    }
}

fn list<T: Clone + std::fmt::Debug + 'static>(
    one: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(one, 1..3)]
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        Just(StringMatch::Presence),
        "(ns|other|mesh.internal/ns/ns/sa/a|mesh.internal/ns/other/sa/b)"
            .prop_map(|text| StringMatch::Exact(text.into())),
        "(n|mesh.internal/ns/o|)".prop_map(|text| StringMatch::Prefix(text.into())),
        "(s|sa/a|)".prop_map(|text| StringMatch::Suffix(text.into())),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0u8..4, 28u8..=32)
            .prop_map(|(host, length)| format!("10.0.0.{host}/{length}").parse::<IpNet>().unwrap().trunc()),
        Just("0.0.0.0/0".parse().unwrap()),
        Just("fd00::/64".parse().unwrap()),
    ]
}

fn account() -> impl Strategy<Value = (Arc<str>, Arc<str>)> {
    ("(ns|other)", "(a|b)").prop_map(|(ns, sa)| (ns.into(), sa.into()))
}

fn one_match() -> impl Strategy<Value = Match> {
    let strings = (
        list(string_match()),
        list(string_match()),
        list(string_match()),
        list(string_match()),
    );
    let nets = (list(net()), list(net()), list(net()), list(net()));
    let rest = (list(80u16..83), list(80u16..83), list(account()), list(account()));
    (strings, nets, rest).prop_map(|(s, n, r)| Match {
        namespaces: s.0,
        not_namespaces: s.1,
        principals: s.2,
        not_principals: s.3,
        source_ips: n.0,
        not_source_ips: n.1,
        destination_ips: n.2,
        not_destination_ips: n.3,
        destination_ports: r.0,
        not_destination_ports: r.1,
        service_accounts: r.2,
        not_service_accounts: r.3,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let rules = prop::collection::vec(
        prop::collection::vec(prop::collection::vec(one_match(), 0..3), 0..3),
        0..3,
    );
    let scope = prop_oneof![
        Just(Scope::Global),
        Just(Scope::Namespace),
        Just(Scope::WorkloadSelector)
    ];
    (0u8..5, scope, any::<bool>(), prop::bool::weighted(0.2), rules).prop_map(|(name, scope, deny, dry_run, rules)| {
        Policy {
            key: format!("ns/{name}").into(),
            namespace: "ns".into(),
            name: name.to_string().into(),
            scope,
            action: if deny { Action::Deny } else { Action::Allow },
            dry_run,
            rules,
        }
    })
}

fn identity() -> impl Strategy<Value = Option<Identity>> {
    prop_oneof![
        Just(None),
        ("(ns|other)", "(a|b)").prop_map(|(ns, sa)| Some(Identity::new("mesh.internal", &ns, &sa).unwrap())),
    ]
}

fn connection() -> impl Strategy<Value = Connection> {
    (
        identity(),
        prop_oneof![
            (0u8..6).prop_map(|n| format!("10.0.0.{n}")),
            Just("fd00::7".to_owned()),
            Just("192.0.2.1".to_owned())
        ],
        79u16..84,
    )
        .prop_map(|(identity, source, port)| Connection {
            identity,
            source: SocketAddr::new(source.parse().unwrap(), 4000),
            destination: SocketAddr::new("10.0.0.9".parse().unwrap(), port),
        })
}

fn world_of(policies: Vec<Policy>, named: Vec<u8>) -> (World, Workload) {
    let orders = service("orders", "240.240.0.1");
    let mut own = endpoint(workload("own", "10.0.0.9"), &orders);
    own.services[0].1.push(crate::world::Port {
        service_port: 80,
        target_port: 81,
        app_protocol: 0,
    });
    own.authorization_policies = named.iter().map(|name| format!("ns/{name}").into()).collect();
    let delta = Delta {
        workloads: vec![own.clone()],
        services: vec![orders],
        policies,
        policies_synced: true,
        ..Delta::default()
    };
    (World::default().apply(delta), own)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_evaluator(policies in prop::collection::vec(policy(), 0..5), named in prop::collection::vec(0u8..6, 0..3), connection in connection()) {
        let (world, own) = world_of(policies, named);
        let decision = authorize(&world, &own, &connection).decision;
        prop_assert_eq!(matches!(decision, Decision::Allowed { .. }), naive::allowed(&world, &own, &connection));
    }

    #[test]
    fn the_packet_filter_says_what_the_policies_say(policies in prop::collection::vec(policy(), 0..4), named in prop::collection::vec(0u8..5, 0..3), host in 0u8..6, port in 80u16..84) {
        let (world, own) = world_of(policies, named);
        let rules = compile(&world, &own);
        let considered: std::collections::BTreeSet<u16> = plaintext::declared_ports(&world, &own).collect();
        let source: std::net::IpAddr = format!("10.0.0.{host}").parse().unwrap();
        let filtered = rules.iter().find(|rule| rule.port == port && rule.source.contains(&source)).is_some_and(|rule| rule.denied_by.is_some());
        let connection = Connection { identity: None, source: SocketAddr::new(source, 4000), destination: SocketAddr::new("10.0.0.9".parse().unwrap(), port) };
        let denied = matches!(authorize(&world, &own, &connection).decision, Decision::Denied(_));
        let named = world.policies().any(|policy| policy.rules.iter().flatten().flatten().any(|m| m.destination_ports.contains(&port) || m.not_destination_ports.contains(&port)));
        if considered.contains(&port) {
            prop_assert_eq!(filtered, denied);
        } else if !named {
            prop_assert!(!filtered, "a port nobody speaks of was filtered");
        } else if filtered {
            prop_assert!(denied);
        }
    }
}

#[test]
fn nothing_is_served_before_the_first_policies() {
    let own = workload("own", "10.0.0.9");
    let connection = Connection {
        identity: None,
        source: "10.0.0.1:1".parse().unwrap(),
        destination: "10.0.0.9:80".parse().unwrap(),
    };
    assert_eq!(
        authorize(&World::default(), &own, &connection).decision,
        Decision::Denied(Denial::NotSynced)
    );
}

#[test]
fn odd_corners() {
    let allow = |rules| Policy {
        key: "ns/p".into(),
        namespace: "ns".into(),
        name: "p".into(),
        scope: Scope::Namespace,
        action: Action::Allow,
        dry_run: false,
        rules,
    };
    let connection = Connection {
        identity: None,
        source: "10.0.0.1:1".parse().unwrap(),
        destination: "10.0.0.9:80".parse().unwrap(),
    };
    let judge = |policy: Policy| {
        let (world, own) = world_of(vec![policy], vec![]);
        authorize(&world, &own, &connection).decision
    };
    // No rules: denies all. An empty rule: allows all. An empty match: never.
    assert_eq!(
        judge(allow(vec![])),
        Decision::Denied(Denial::NotAllowed(vec!["ns/p".into()]))
    );
    assert_eq!(
        judge(allow(vec![vec![]])),
        Decision::Allowed {
            policy: Some("ns/p".into())
        }
    );
    assert_eq!(
        judge(allow(vec![vec![vec![Match::default()]]])),
        Decision::Denied(Denial::NotAllowed(vec!["ns/p".into()]))
    );
    let deny_nothing = Policy {
        action: Action::Deny,
        ..allow(vec![])
    };
    assert_eq!(judge(deny_nothing), Decision::Allowed { policy: None });
    // STRICT is a DENY of those who are nobody.
    let strict = Policy {
        action: Action::Deny,
        ..allow(vec![vec![vec![Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        }]]])
    };
    assert_eq!(judge(strict), Decision::Denied(Denial::Explicit("ns/p".into())));
}
