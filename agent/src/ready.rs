//! What is not ready yet. A part holds a [`Pending`] until it is; readiness is nobody holding one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The list. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Mutex<BTreeSet<&'static str>>>);

/// Dropped when a part is ready.
#[derive(Debug)]
pub struct Pending(Ready, &'static str);

impl Ready {
    /// Not ready until the result is dropped.
    #[must_use]
    pub fn pending(&self, what: &'static str) -> Pending {
        self.lock().insert(what);
        Pending(self.clone(), what)
    }

    /// What is being waited for; empty when ready.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.lock().remove(self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nobody_waits() {
        let ready = Ready::default();
        let (a, b) = (ready.pending("world"), ready.pending("certificate"));
        assert_eq!(ready.waiting_for(), ["certificate", "world"]);
        drop((a, b));
        assert!(ready.waiting_for().is_empty());
    }
}
