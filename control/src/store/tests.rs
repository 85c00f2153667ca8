#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;

use super::*;

fn owners(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn a_failed_change_leaves_nothing() {
    let store = Store::in_memory().unwrap();
    let key = ResourceKey {
        kind: "Service".into(),
        namespace: "a".into(),
        name: "b".into(),
    };
    let failed: Result<(), Error> = store.write(|tx| {
        ResourceRow::put(tx, &key, "v1", "{}", None, 1)?;
        Err(Error::InvalidQuery)
    });
    assert!(failed.is_err());
    let found = store.write(|tx| ResourceRow::list(tx, "", "", "")).unwrap();
    assert!(found.is_empty());
}

#[test]
fn reopening_keeps_rows_and_migrates_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let anchor = AnchorRow {
        fingerprint: "f".into(),
        certificate: "c".into(),
        cross_signed: None,
        role: Role::Next,
        created_at: 3,
    };
    Store::open(&path).unwrap().write(|tx| anchor.put(tx)).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.write(AnchorRow::list).unwrap(), [anchor]);
}

#[test]
fn automatic_addresses_are_stable_and_not_reused_while_held() {
    let store = Store::in_memory().unwrap();
    let first = store.write(|tx| vips::reconcile(tx, &owners(&["a", "b"]))).unwrap();
    let second = store
        .write(|tx| vips::reconcile(tx, &owners(&["a", "b", "c"])))
        .unwrap();
    assert_eq!(first["a"], second["a"]);
    assert_eq!(first["b"], second["b"]);
    let all: BTreeSet<u16> = second.values().copied().collect();
    assert_eq!(all.len(), 3);
    let third = store.write(|tx| vips::reconcile(tx, &owners(&["c"]))).unwrap();
    assert_eq!(third.len(), 1);
    assert_eq!(third["c"], second["c"]);
}
