//! Automatic virtual addresses: which slot of the automatic ranges each service holds. A slot is never given twice while held.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Error, Transaction, params};

/// Slots: the host parts 1..=65534 of 240.240.0.0/16; the same number is used in 2001:2::/48.
const SLOTS: u32 = 65_534;

/// Makes the holders of slots exactly `owners`: gives slots to new ones, takes them from those that are gone.
/// Deterministic for the same history: a new owner probes upwards from a hash of its name. Owners beyond the range get none.
pub fn reconcile(tx: &Transaction<'_>, owners: &BTreeSet<String>) -> Result<BTreeMap<String, u16>, Error> {
    let mut held: BTreeMap<String, u16> = tx
        .prepare_cached("SELECT owner, slot FROM vips")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let gone: Vec<String> = held.keys().filter(|o| !owners.contains(*o)).cloned().collect();
    for owner in gone {
        tx.execute("DELETE FROM vips WHERE owner = ?1", [&owner])?;
        held.remove(&owner);
    }
    let mut taken: BTreeSet<u16> = held.values().copied().collect();
    for owner in owners {
        if held.contains_key(owner) {
            continue;
        }
        let Some(slot) = free_slot(owner, &taken) else {
            tracing::error!(owner, "no automatic address is left: 65534 services hold one each");
            break;
        };
        tx.execute("INSERT INTO vips (owner, slot) VALUES (?1, ?2)", params![owner, slot])?;
        taken.insert(slot);
        held.insert(owner.clone(), slot);
    }
    Ok(held)
}

fn free_slot(owner: &str, taken: &BTreeSet<u16>) -> Option<u16> {
    if taken.len() >= SLOTS as usize {
        return None;
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, owner.as_bytes());
    let start = digest.as_ref().iter().take(4).fold(0u32, |n, b| n << 8 | u32::from(*b));
    (0..SLOTS)
        .filter_map(|step| u16::try_from((start % SLOTS + step) % SLOTS + 1).ok())
        .find(|slot| !taken.contains(slot))
}
