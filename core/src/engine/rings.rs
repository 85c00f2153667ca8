//! Ring memory from the heap: for tests, and where the driver has nothing better.

use managed::ManagedSlice;

use super::api::{Ring, RingMemory};

/// A bounded number of rings from the allocator.
#[derive(Debug)]
pub struct HeapRings {
    bytes: usize,
    free: Vec<usize>,
    next: usize,
    max: usize,
}

impl HeapRings {
    /// At most `max` rings of `bytes` each.
    pub fn new(bytes: usize, max: usize) -> Self {
        Self {
            bytes,
            free: Vec::new(),
            next: 0,
            max,
        }
    }

    /// Rings that are taken now.
    pub fn taken(&self) -> usize {
        self.next - self.free.len()
    }
}

impl RingMemory for HeapRings {
    fn take(&mut self) -> Option<Ring> {
        let id = match self.free.pop() {
            Some(id) => id,
            None if self.next < self.max => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        Some(Ring {
            id,
            memory: ManagedSlice::Owned(vec![0; self.bytes]),
        })
    }

    fn give(&mut self, id: usize) {
        debug_assert!(!self.free.contains(&id), "a ring was given back twice");
        self.free.push(id);
    }
}
