//! Pooled connections: keyed by our identity, the identities demanded, and the peer's address.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use mesh_core::identity::Identity;
use rustc_hash::FxHashMap;
use tokio::sync::Mutex;

use super::{Target, http2, http3};
use crate::failure::Failure;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pool(RefCell<FxHashMap<(Identity, Target), Rc<Slot>>>);

/// The connections of one key that take streams.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) http3: Held<http3::Connection>,
    pub(super) http2: Held<http2::Client>,
    /// How many streams one of them took at a time, where that was less than expected.
    pub(super) offered: Cell<Option<usize>>,
}

/// At most one connection that takes streams. One that takes no more serves those that it has, until they end.
#[derive(Debug)]
pub(super) struct Held<T>(Mutex<Option<Rc<T>>>);

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Whether a connection may be used for another stream.
pub(super) trait TakesStreams {
    fn takes_streams(&self) -> bool;
}

impl TakesStreams for http3::Connection {
    fn takes_streams(&self) -> bool {
        self.takes_streams()
    }
}

impl TakesStreams for http2::Client {
    fn takes_streams(&self) -> bool {
        self.takes_streams()
    }
}

impl<T: TakesStreams> Held<T> {
    /// The connection that is there, or what `connect` makes. One attempt is under way; others wait for its result.
    pub(super) async fn get(&self, connect: impl AsyncFnOnce() -> Result<Rc<T>, Failure>) -> Result<Rc<T>, Failure> {
        let mut held = self.0.lock().await;
        if let Some(one) = held.as_ref().filter(|one| one.takes_streams()) {
            return Ok(one.clone());
        }
        *held = None;
        let one = connect().await?;
        *held = Some(one.clone());
        Ok(one)
    }

    /// The connection that is there and takes streams, if nobody is connecting.
    pub(super) fn live(&self) -> Option<Rc<T>> {
        let held = self.0.try_lock().ok()?;
        held.as_ref().filter(|one| one.takes_streams()).cloned()
    }

    fn is_live(&self) -> bool {
        // Who holds the lock is connecting.
        self.0
            .try_lock()
            .map_or(true, |held| held.as_ref().is_some_and(|one| one.takes_streams()))
    }
}

impl Pool {
    /// The place of a key.
    pub(super) fn slot(&self, own: &Identity, target: &Target) -> Rc<Slot> {
        let mut slots = self.0.borrow_mut();
        if slots.len() >= MAX_SLOTS {
            slots.retain(|_, slot| Rc::strong_count(slot) > 1 || slot.http3.is_live() || slot.http2.is_live());
        }
        slots.entry((own.clone(), target.clone())).or_default().clone()
    }
}

/// Above so many keys, dead ones are swept.
const MAX_SLOTS: usize = 4096;
