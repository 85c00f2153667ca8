//! Where rings come from: the trait, and a plain implementation on the heap.

use managed::ManagedSlice;

/// Memory for rings. The engine drops the socket that used a ring before it gives the ring back.
pub trait RingMemory: std::fmt::Debug {
    /// One ring of [`super::Limits::ring_bytes`], content unspecified; `None` when there is no more.
    fn take(&mut self) -> Option<Ring>;
    /// The ring with this id is not referenced any more.
    fn give(&mut self, id: usize);
}

/// One ring of memory.
#[derive(Debug)]
pub struct Ring {
    /// For [`RingMemory::give`].
    pub id: usize,
    /// The memory.
    pub memory: ManagedSlice<'static, u8>,
}

/// Rings from the heap, zeroed each time: for tests, and where nothing better is at hand.
#[derive(Debug)]
pub struct HeapRings {
    bytes: usize,
    left: usize,
}

impl HeapRings {
    /// At most `count` rings of `bytes` at a time.
    pub fn new(bytes: usize, count: usize) -> Self {
        Self { bytes, left: count }
    }

    /// Rings that can still be taken.
    pub fn left(&self) -> usize {
        self.left
    }
}

impl RingMemory for HeapRings {
    fn take(&mut self) -> Option<Ring> {
        self.left = self.left.checked_sub(1)?;
        Some(Ring {
            id: 0,
            memory: ManagedSlice::Owned(vec![0; self.bytes]),
        })
    }

    fn give(&mut self, _id: usize) {
        self.left += 1;
    }
}
