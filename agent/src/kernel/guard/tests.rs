//! The text is deterministic, merged, and cannot be broken out of.

use super::*;

fn guard() -> Guard {
    Guard::new(&Capture::default(), &Dns::default(), 15008)
}

fn rule(sources: Option<&[&str]>, ports: Option<&[u16]>, allow: bool, policy: &str) -> PlaintextRule {
    PlaintextRule {
        sources: sources.map(|nets| nets.iter().map(|net| net.parse().unwrap()).collect()),
        ports: ports.map(<[u16]>::to_vec),
        allow,
        policy: Some(policy.into()),
    }
}

#[test]
fn plaintext_rules_keep_their_order() {
    let mut guard = guard();
    guard.set_plaintext(&[
        rule(
            Some(&["10.0.0.0/9", "10.128.0.0/9", "fd00::/8"]),
            Some(&[8080, 80]),
            true,
            "shop/allow",
        ),
        rule(None, Some(&[80]), false, "shop/strict"),
        rule(None, None, false, "shop/all"),
    ]);
    let text = guard.text();
    let start = text.find("th dport 15008 accept\n").unwrap();
    assert_eq!(
        &text[start + "th dport 15008 accept\n".len()..],
        "    ip saddr { 10.0.0.0/8 } meta l4proto { tcp, udp } th dport { 80, 8080 } counter accept comment \"shop/allow\"
    ip6 saddr { fd00::/8 } meta l4proto { tcp, udp } th dport { 80, 8080 } counter accept comment \"shop/allow\"
    meta l4proto { tcp, udp } th dport { 80 } counter goto refuse comment \"shop/strict\"
    meta l4proto tcp counter goto refuse comment \"shop/all\"
  }
}
"
    );
}

#[test]
fn no_source_and_no_port_match_nothing() {
    let mut guard = guard();
    let without = guard.text();
    guard.set_plaintext(&[
        rule(Some(&[]), Some(&[80]), true, "a"),
        rule(None, Some(&[]), true, "b"),
    ]);
    assert_eq!(guard.text(), without);
}

#[test]
fn every_address_of_a_family() {
    assert_eq!(
        sources(Some(&["0.0.0.0/0".parse().unwrap()])),
        vec!["meta nfproto ipv4 ".to_owned()]
    );
}

#[test]
fn a_name_cannot_end_the_comment() {
    assert_eq!(comment("a\"; drop\n#ü"), "a.. drop...");
    assert_eq!(comment(&"x".repeat(500)).len(), COMMENT);
}

#[test]
fn bridges_that_are_named_may_forward() {
    let capture = Capture {
        forward_interfaces: vec!["docker0".into()],
        ..Capture::default()
    };
    let text = Guard::new(&capture, &Dns::default(), 15008).text();
    assert!(text.contains("oifname \"mesh0\" iifname != { \"docker0\" } counter drop"));
}

#[test]
fn what_answers_a_caller_is_sent_back_before_anything_else_is_asked() {
    let text = guard().text();
    assert!(text.contains("iifname != \"mesh0\" accept\n    meta l4proto tcp ct state new ct mark set 28006\n"));
    let order = [
        "ct mark 28006 oifname \"mesh0\" accept\n",
        "ct mark 28006 meta mark set 28006 accept\n",
        "oifname != \"mesh0\" accept\n",
        "ct direction reply meta mark set 28005 accept\n",
        "ip daddr @callers4 tcp flags & syn == 0 ct state new ct mark 0 ct mark set 28006 accept\n",
        "tcp flags & syn == 0 ct state new ct mark 0 ct mark set 28005",
    ];
    let at = order.map(|rule| text.find(rule).unwrap());
    assert!(at.is_sorted(), "{text}");
}

#[test]
fn counts_are_read_from_json() {
    let rule = serde_json::json!({
        "comment": "shop/strict",
        "expr": [{"match": {}}, {"counter": {"packets": 3, "bytes": 180}}, {"goto": {"target": "refuse"}}],
    });
    let expected = Count {
        policy: "shop/strict".into(),
        allowed: false,
        packets: 3,
    };
    assert_eq!(count(&rule), Some(expected));
}
