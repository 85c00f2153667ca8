//! The holders of one key, best first: nearly always one, so one costs no allocation.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Service, Workload};

/// What a bucket holds. Two entries that compare equal are the same one.
pub(super) trait Entry {
    fn order(&self, other: &Self) -> Ordering;
}

impl Entry for Workload {
    fn order(&self, other: &Self) -> Ordering {
        (self.address_rank(), &self.uid).cmp(&(other.address_rank(), &other.uid))
    }
}

impl Entry for Service {
    fn order(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

/// Never empty: the map drops the key instead.
#[derive(Debug)]
pub(super) enum Bucket<T> {
    One(Arc<T>),
    Many(Arc<[Arc<T>]>),
}

// Not derived: that would ask for `T: Clone`.
impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        match self {
            Self::One(one) => Self::One(Arc::clone(one)),
            Self::Many(many) => Self::Many(Arc::clone(many)),
        }
    }
}

impl<T: Entry> Bucket<T> {
    pub(super) fn as_slice(&self) -> &[Arc<T>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    /// With `entry` in its place.
    pub(super) fn with(&self, entry: Arc<T>) -> Self {
        let mut all = self.as_slice().to_vec();
        match all.binary_search_by(|held| held.order(&entry)) {
            Ok(at) => all[at] = entry,
            Err(at) => all.insert(at, entry),
        }
        Self::of(all)
    }

    /// Without `entry`; `None` when nothing is left.
    pub(super) fn without(&self, entry: &T) -> Option<Self> {
        let left: Vec<_> = self
            .as_slice()
            .iter()
            .filter(|held| held.order(entry) != Ordering::Equal)
            .map(Arc::clone)
            .collect();
        (!left.is_empty()).then(|| Self::of(left))
    }

    fn of(all: Vec<Arc<T>>) -> Self {
        match all.as_slice() {
            [one] => Self::One(Arc::clone(one)),
            _ => Self::Many(all.into()),
        }
    }
}
