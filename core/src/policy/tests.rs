//! The odd corners, one by one. That all of it agrees with a second evaluator is in `tests/policy.rs`.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::world::{Delta, fixture};

fn policy(name: &str, scope: Scope, action: Action, matches: Vec<Match>) -> Policy {
    let rules = matches.into_iter().map(|one| vec![vec![one]]).collect();
    Policy {
        key: format!("shop/{name}").into(),
        namespace: "shop".into(),
        name: name.into(),
        scope,
        action,
        dry_run: false,
        rules,
    }
}

fn plaintext_only() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

fn own(named: &[&str]) -> Workload {
    let mut own = fixture::workload("us", "10.0.0.1");
    own.authorization_policies = named.iter().map(|key| Arc::from(*key)).collect();
    own.services = vec![(fixture::key("orders"), vec![fixture::port(80, 8080)])];
    own
}

fn world(policies: Vec<Policy>) -> World {
    World::default().apply(Delta {
        policies,
        policies_synced: true,
        ..Delta::default()
    })
}

fn from(identity: Option<&str>, source: &str) -> Connection {
    Connection {
        identity: identity.map(|uri| uri.parse().unwrap()),
        source: source.parse().unwrap(),
        destination: "10.0.0.1:8080".parse().unwrap(),
    }
}

const WEB: Option<&str> = Some("spiffe://mesh.internal/ns/shop/sa/web");

fn decision(policies: Vec<Policy>, named: &[&str], connection: &Connection) -> Decision {
    authorize(&world(policies), &own(named), connection).decision
}

#[test]
fn nothing_is_served_before_policies_came() {
    let verdict = authorize(&World::default(), &own(&[]), &from(WEB, "10.0.0.2:1"));
    assert_eq!(verdict.decision, Decision::Denied(Denial::NotSynced));
}

#[test]
fn without_policies_everything_may() {
    assert_eq!(
        decision(vec![], &[], &from(None, "10.0.0.2:1")),
        Decision::Allowed { policy: None }
    );
}

#[test]
fn a_missing_policy_denies_and_an_explicit_denial_is_named_first() {
    let missing = decision(vec![], &["shop/gone"], &from(WEB, "10.0.0.2:1"));
    assert_eq!(missing, Decision::Denied(Denial::MissingPolicy("shop/gone".into())));
    let deny = policy("strict", Scope::Namespace, Action::Deny, vec![plaintext_only()]);
    let both = decision(vec![deny], &["shop/gone"], &from(None, "10.0.0.2:1"));
    assert_eq!(both, Decision::Denied(Denial::Explicit("shop/strict".into())));
}

#[test]
fn strict_denies_what_has_no_identity() {
    let strict = || {
        vec![policy(
            "strict",
            Scope::WorkloadSelector,
            Action::Deny,
            vec![plaintext_only()],
        )]
    };
    assert!(!decision(strict(), &["shop/strict"], &from(None, "10.0.0.2:1")).is_allowed());
    assert!(decision(strict(), &["shop/strict"], &from(WEB, "10.0.0.2:1")).is_allowed());
    assert!(
        decision(strict(), &[], &from(None, "10.0.0.2:1")).is_allowed(),
        "not named"
    );
}

#[test]
fn an_empty_match_never_matches_and_an_empty_allow_denies() {
    let denied = Decision::Denied(Denial::NotAllowed(vec!["shop/p".into()]));
    for matches in [vec![], vec![Match::default()]] {
        let allow = policy("p", Scope::Namespace, Action::Allow, matches.clone());
        assert_eq!(decision(vec![allow], &[], &from(WEB, "10.0.0.2:1")), denied);
        let deny = policy("p", Scope::Namespace, Action::Deny, matches);
        assert!(decision(vec![deny], &[], &from(WEB, "10.0.0.2:1")).is_allowed());
    }
    let mut no_clause = policy("p", Scope::Namespace, Action::Deny, vec![]);
    no_clause.rules = vec![vec![]];
    assert!(
        !decision(vec![no_clause], &[], &from(WEB, "10.0.0.2:1")).is_allowed(),
        "a rule without clauses holds"
    );
}

#[test]
fn mapped_addresses_are_their_ipv4_form() {
    let range = Match {
        source_ips: vec!["10.0.0.0/24".parse().unwrap()],
        ..Match::default()
    };
    let deny = policy("net", Scope::Global, Action::Deny, vec![range]);
    assert!(!decision(vec![deny], &[], &from(WEB, "[::ffff:10.0.0.7]:1")).is_allowed());
}

#[test]
fn dry_run_tells_what_would_change() {
    let dry = |name: &str, action, matches| Policy {
        dry_run: true,
        ..policy(name, Scope::Namespace, action, matches)
    };
    let policies = vec![
        dry("would-deny", Action::Deny, vec![plaintext_only()]),
        dry("would-deny-too", Action::Allow, vec![]),
        dry("harmless", Action::Allow, vec![plaintext_only()]),
    ];
    let verdict = authorize(&world(policies), &own(&[]), &from(None, "10.0.0.2:1"));
    assert!(verdict.decision.is_allowed());
    let would: Vec<_> = verdict.dry_run.iter().map(|(key, action)| (&**key, *action)).collect();
    assert_eq!(
        would,
        [("shop/would-deny", Action::Deny), ("shop/would-deny-too", Action::Deny)]
    );
}

#[test]
fn strict_compiles_to_one_rule_on_declared_ports() {
    let strict = policy("strict", Scope::WorkloadSelector, Action::Deny, vec![plaintext_only()]);
    let rules = compile_plaintext(&world(vec![strict]), &own(&["shop/strict"]));
    let policy = Some(Arc::from("shop/strict"));
    assert_eq!(
        rules,
        [PlaintextRule {
            sources: None,
            ports: Some(vec![8080]),
            allow: false,
            policy
        }]
    );
}

#[test]
fn nothing_to_say_compiles_to_nothing() {
    assert_eq!(compile_plaintext(&world(vec![]), &own(&[])), []);
}

#[test]
fn declared_ports_are_closed_until_policies_came_and_while_one_is_missing() {
    let closed = |rules: Vec<PlaintextRule>| rules.len() == 1 && !rules[0].allow && rules[0].ports == Some(vec![8080]);
    assert!(closed(compile_plaintext(&World::default(), &own(&[]))));
    assert!(closed(compile_plaintext(&world(vec![]), &own(&["shop/gone"]))));
}

#[test]
fn too_many_sources_close_the_ports() {
    let source = |at: u32| {
        ipnet::Ipv4Net::new(std::net::Ipv4Addr::from(at * 256), 24)
            .unwrap()
            .into()
    };
    let sources = Match {
        source_ips: (0..5000).map(source).collect(),
        ..Match::default()
    };
    let rules = compile_plaintext(
        &world(vec![policy("p", Scope::Global, Action::Deny, vec![sources])]),
        &own(&[]),
    );
    assert_eq!(rules[0].policy.as_deref(), Some(TOO_MANY_SOURCES));
    assert!(rules[0].sources.is_none() && !rules[0].allow);
}
