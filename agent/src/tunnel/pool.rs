//! One pooled connection per peer: keyed by our identity, the identities demanded, and the peer's address.

use std::cell::RefCell;
use std::rc::Rc;

use mesh_core::identity::Identity;
use rustc_hash::FxHashMap;
use tokio::sync::Mutex;

use super::Target;
use super::connection::Tunnel;
use crate::failure::Failure;

/// See the module. One attempt is under way per key; others wait for its result.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Rc<RefCell<FxHashMap<(Identity, Target), Slot>>>);

type Slot = Rc<Mutex<Option<Rc<Tunnel>>>>;

impl Pool {
    /// The pooled connection, or what `connect` makes.
    pub(super) async fn get(
        &self,
        own: &Identity,
        target: &Target,
        connect: impl AsyncFnOnce() -> Result<Rc<Tunnel>, Failure>,
    ) -> Result<Rc<Tunnel>, Failure> {
        let slot = self.slot(own, target);
        let mut held = slot.lock().await;
        if let Some(tunnel) = held.as_ref().filter(|tunnel| tunnel.takes_streams()) {
            return Ok(tunnel.clone());
        }
        // A connection that takes no more streams serves the ones it has.
        *held = None;
        let tunnel = connect().await?;
        *held = Some(tunnel.clone());
        Ok(tunnel)
    }

    /// Live connections: (peer, whether it takes streams).
    pub(super) fn len(&self) -> usize {
        let live = |slot: &Slot| slot.try_lock().is_ok_and(|held| held.as_ref().is_some_and(|one| one.takes_streams()));
        self.0.borrow().iter().filter(|(_, slot)| live(slot)).count()
    }

    fn slot(&self, own: &Identity, target: &Target) -> Slot {
        let mut slots = self.0.borrow_mut();
        if slots.len() >= MAX_SLOTS {
            slots.retain(|_, slot| {
                Rc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|held| held.as_ref().is_some_and(|one| one.takes_streams()))
            });
        }
        slots.entry((own.clone(), target.clone())).or_default().clone()
    }
}

/// Above so many keys, dead ones are swept.
const MAX_SLOTS: usize = 4096;
