//! Authorization against a second evaluator, written naively from the tables of ztunnel's algorithm; and the kernel's
//! plaintext rules against authorization.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::identity::Identity;
use mesh_core::policy::{
    Action, Connection, Decision, Denial, Match, PlaintextRule, Policy, Scope, StringMatch, authorize,
    compile_plaintext,
};
use mesh_core::world::convert::{self, Names};
use mesh_core::world::{Delta, Workload, World};
use mesh_proto::istio::workload as proto;
use proptest::prelude::*;
use proptest::sample::select;

const PORTS: [u16; 4] = [22, 80, 8080, 9090];
const SOURCES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.200",
    "10.0.1.1",
    "10.1.0.1",
    "192.0.2.1",
    "0.0.0.0",
    "255.255.255.255",
    "fd00::1",
    "fd00:1::1",
    "2001:db8::1",
];
const RANGES: [&str; 9] = [
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.128/25",
    "10.0.0.1/32",
    "0.0.0.0/0",
    "fd00::/16",
    "fd00::1/128",
    "::/0",
    "128.0.0.0/1",
];

fn texts() -> impl Strategy<Value = Vec<StringMatch>> {
    let text = || select(vec!["", "shop", "bank", "td/ns/shop/sa/web", "td/ns/", "/sa/web", "sh"]).prop_map(Arc::from);
    let one = prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ];
    sparse(one)
}

/// Mostly nothing: a match with all fields hardly ever holds.
fn sparse<T: std::fmt::Debug>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    (0..4_usize, prop::collection::vec(one, 1..3)).prop_map(|(dice, list)| if dice == 0 { list } else { vec![] })
}

fn ranges() -> impl Strategy<Value = Vec<IpNet>> {
    sparse(select(RANGES.to_vec()).prop_map(|range| range.parse().unwrap()))
}

fn accounts() -> impl Strategy<Value = Vec<(Arc<str>, Arc<str>)>> {
    sparse((select(vec!["shop", "bank"]), select(vec!["web", "db"])).prop_map(|(ns, sa)| (ns.into(), sa.into())))
}

fn any_match() -> impl Strategy<Value = Match> {
    let strings = (texts(), texts(), texts(), texts());
    let ips = (ranges(), ranges(), ranges(), ranges());
    let ports = (sparse(select(PORTS.to_vec())), sparse(select(PORTS.to_vec())));
    (strings, ips, ports, (accounts(), accounts())).prop_map(|(strings, ips, ports, accounts)| Match {
        namespaces: strings.0,
        not_namespaces: strings.1,
        principals: strings.2,
        not_principals: strings.3,
        source_ips: ips.0,
        not_source_ips: ips.1,
        destination_ips: ips.2,
        not_destination_ips: ips.3,
        destination_ports: ports.0,
        not_destination_ports: ports.1,
        service_accounts: accounts.0,
        not_service_accounts: accounts.1,
    })
}

fn any_policies() -> impl Strategy<Value = Vec<Policy>> {
    let clauses = prop::collection::vec(prop::collection::vec(any_match(), 0..3), 0..3);
    let one = (
        prop::collection::vec(clauses, 0..3),
        select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]),
        select(vec!["shop", "bank"]),
        any::<bool>(),
        0..5_u8,
    );
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let policy = |(at, (rules, scope, namespace, allow, dry)): (usize, (_, _, &str, bool, u8))| Policy {
            key: format!("{namespace}/p{at}").into(),
            namespace: namespace.into(),
            name: format!("p{at}").into(),
            scope,
            action: if allow { Action::Allow } else { Action::Deny },
            dry_run: dry == 0,
            rules,
        };
        all.into_iter().enumerate().map(policy).collect()
    })
}

fn workload(named: Vec<Arc<str>>) -> Workload {
    let port = |service_port, target_port| proto::Port {
        service_port,
        target_port,
        app_protocol: 0,
    };
    let ports = proto::PortList {
        ports: vec![port(80, 8080), port(81, 80)],
    };
    let sent = proto::Workload {
        uid: "us".to_owned(),
        name: "us".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![
            vec![10, 0, 0, 9],
            "fd00::9".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec(),
        ],
        services: [("shop/orders".to_owned(), ports)].into(),
        ..Default::default()
    };
    let mut workload = convert::workload(sent, &mut Names::default()).unwrap();
    workload.authorization_policies = named;
    workload
}

/// Names the selector policies whose bit is set, and a missing one when the last is.
fn named(policies: &[Policy], bits: u8) -> Vec<Arc<str>> {
    let picked = policies.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0);
    let mut named: Vec<_> = picked.map(|(_, policy)| Arc::clone(&policy.key)).collect();
    if bits > 240 {
        named.push("shop/missing".into());
    }
    named
}

fn world(policies: Vec<Policy>) -> World {
    World::default().apply(Delta {
        policies,
        policies_synced: true,
        ..Delta::default()
    })
}

/// The table of levels, column by column.
fn naive_match(one: &Match, connection: &Connection) -> bool {
    let namespace = connection
        .identity
        .as_ref()
        .map_or(String::new(), |identity| identity.namespace().to_owned());
    let principal = connection
        .identity
        .as_ref()
        .map(|identity| identity.to_string().replace("spiffe://", ""));
    let text = |entry: &StringMatch, text: &str| match entry {
        StringMatch::Exact(exact) => text == exact.to_string(),
        StringMatch::Prefix(prefix) => text.len() >= prefix.len() && text[..prefix.len()] == **prefix,
        StringMatch::Suffix(suffix) => text.len() >= suffix.len() && text[text.len() - suffix.len()..] == **suffix,
        StringMatch::Presence => !text.is_empty(),
    };
    let inside = |range: &IpNet, ip: IpAddr| match (range.network(), ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => {
            let shift = 32 - u32::from(range.prefix_len());
            u64::from(u32::from(net)) >> shift == u64::from(u32::from(ip)) >> shift
        }
        (IpAddr::V6(net), IpAddr::V6(ip)) => {
            let bits = usize::from(range.prefix_len());
            let binary = |ip| format!("{:0128b}", u128::from(ip));
            binary(net)[..bits] == binary(ip)[..bits]
        }
        _ => false,
    };
    let account = |entry: &(Arc<str>, Arc<str>)| {
        let Some(identity) = &connection.identity else {
            return false;
        };
        (identity.namespace(), identity.service_account()) == (&*entry.0, &*entry.1)
    };
    let mut kinds = Vec::new();
    let mut kind = |positive: Vec<bool>, negative: Vec<bool>| {
        if !positive.is_empty() || !negative.is_empty() {
            kinds.push((positive.is_empty() || positive.contains(&true)) && !negative.contains(&true));
        }
    };
    let of_namespace = |list: &[StringMatch]| list.iter().map(|entry| text(entry, &namespace)).collect();
    kind(of_namespace(&one.namespaces), of_namespace(&one.not_namespaces));
    let of_principal = |list: &[StringMatch]| {
        list.iter()
            .map(|entry| principal.as_ref().is_some_and(|principal| text(entry, principal)))
            .collect()
    };
    kind(of_principal(&one.principals), of_principal(&one.not_principals));
    let of_source = |list: &[IpNet]| list.iter().map(|range| inside(range, connection.source.ip())).collect();
    kind(of_source(&one.source_ips), of_source(&one.not_source_ips));
    let of_target = |list: &[IpNet]| {
        list.iter()
            .map(|range| inside(range, connection.destination.ip()))
            .collect()
    };
    kind(of_target(&one.destination_ips), of_target(&one.not_destination_ips));
    let of_port = |list: &[u16]| list.iter().map(|port| *port == connection.destination.port()).collect();
    kind(of_port(&one.destination_ports), of_port(&one.not_destination_ports));
    let of_account = |list: &[(Arc<str>, Arc<str>)]| list.iter().map(account).collect();
    kind(of_account(&one.service_accounts), of_account(&one.not_service_accounts));
    !kinds.is_empty() && !kinds.contains(&false)
}

fn naive_policy(policy: &Policy, connection: &Connection) -> bool {
    for rule in &policy.rules {
        let mut all = true;
        for clause in rule {
            let hits = clause.iter().filter(|one| naive_match(one, connection)).count();
            all = all && (clause.is_empty() || hits > 0);
        }
        if all {
            return true;
        }
    }
    false
}

#[derive(Debug, PartialEq)]
enum Naive {
    Allow,
    Explicit,
    Missing,
    NotAllowed,
}

fn naive(policies: &[Policy], own: &Workload, connection: &Connection) -> Naive {
    let applies = |policy: &&Policy| {
        policy.scope == Scope::Global
            || (policy.scope == Scope::Namespace && policy.namespace == own.namespace)
            || own.authorization_policies.contains(&policy.key)
    };
    let enforced: Vec<_> = policies
        .iter()
        .filter(applies)
        .filter(|policy| !policy.dry_run)
        .collect();
    let (deny, allow): (Vec<&Policy>, Vec<&Policy>) = enforced.iter().partition(|policy| policy.action == Action::Deny);
    let known = |key: &Arc<str>| policies.iter().any(|policy| policy.key == *key);
    if deny.iter().any(|policy| naive_policy(policy, connection)) {
        Naive::Explicit
    } else if own.authorization_policies.iter().any(|key| !known(key)) {
        Naive::Missing
    } else if allow.is_empty() || allow.iter().any(|policy| naive_policy(policy, connection)) {
        Naive::Allow
    } else {
        Naive::NotAllowed
    }
}

fn kernel(rules: &[PlaintextRule], source: IpAddr, port: u16) -> bool {
    let hit = rules.iter().find(|rule| {
        rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
            && rule
                .sources
                .as_ref()
                .is_none_or(|sources| sources.iter().any(|range| range.contains(&source)))
    });
    hit.is_none_or(|rule| rule.allow)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn agrees_with_the_tables(
        policies in any_policies(),
        bits in any::<u8>(),
        identity in prop::option::of((select(vec!["shop", "bank"]), select(vec!["web", "db"]))),
        source in select(SOURCES.to_vec()),
        port in select(PORTS.to_vec()),
    ) {
        let own = workload(named(&policies, bits));
        let source: IpAddr = source.parse().unwrap();
        let destination = own.addresses.iter().find(|own| own.is_ipv4() == source.is_ipv4()).unwrap();
        let connection = Connection {
            identity: identity.map(|(ns, sa)| Identity::new("td", ns, sa).unwrap()),
            source: SocketAddr::new(source, 4711),
            destination: SocketAddr::new(*destination, port),
        };
        let expected = naive(&policies, &own, &connection);
        let decided = match authorize(&world(policies), &own, &connection).decision {
            Decision::Allowed { .. } => Naive::Allow,
            Decision::Denied(Denial::Explicit(_)) => Naive::Explicit,
            Decision::Denied(Denial::MissingPolicy(_)) => Naive::Missing,
            Decision::Denied(Denial::NotAllowed(keys)) if !keys.is_empty() => Naive::NotAllowed,
            Decision::Denied(other) => panic!("{other:?}"),
        };
        prop_assert_eq!(decided, expected);
    }

    #[test]
    fn the_kernel_decides_alike(policies in any_policies(), bits in any::<u8>(), random in any::<u32>()) {
        let own = workload(named(&policies, bits));
        let spoken_of: Vec<u16> = {
            let applies = |policy: &&Policy| !policy.dry_run
                && (policy.scope == Scope::Global
                    || (policy.scope == Scope::Namespace && policy.namespace == own.namespace)
                    || own.authorization_policies.contains(&policy.key));
            let matches = policies.iter().filter(applies).flat_map(|policy| policy.rules.iter().flatten().flatten());
            matches.flat_map(|one| one.destination_ports.clone()).chain([80, 8080]).collect()
        };
        let world = world(policies);
        let rules = compile_plaintext(&world, &own);
        let mut sources: Vec<IpAddr> = SOURCES.iter().map(|text| text.parse().unwrap()).collect();
        sources.push(std::net::Ipv4Addr::from(random).into());
        for source in sources {
            for port in PORTS {
                let destination = own.addresses.iter().find(|own| own.is_ipv4() == source.is_ipv4()).unwrap();
                let connection = Connection {
                    identity: None,
                    source: SocketAddr::new(source, 4711),
                    destination: SocketAddr::new(*destination, port),
                };
                let expected =
                    !spoken_of.contains(&port) || authorize(&world, &own, &connection).decision.is_allowed();
                prop_assert_eq!(kernel(&rules, source, port), expected, "{} {} {:?}", source, port, rules);
            }
        }
        let no_zero = |rule: &PlaintextRule| rule.sources.iter().flatten().all(|range| range.prefix_len() > 0);
        prop_assert!(rules.iter().all(no_zero));
    }
}
