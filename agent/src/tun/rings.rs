//! Memory for the rings of flows: mapped in slabs, reused without zeroing, and given back to the kernel when more of it
//! lies idle than the next burst needs.
//!
//! A flow's rings are read only where they were written, so old content does not matter; zeroing 256 KiB for each
//! connection would cost more than the connection.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use mesh_core::engine::{Ring, RingMemory};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// Rings of one mapping. A mapping per ring would run into `vm.max_map_count`.
const SLAB: usize = 64;
/// Free rings that keep their pages.
const WARM: usize = 64;

/// Ring memory from the kernel, at most a fixed number of rings.
#[derive(Debug)]
pub struct MappedRings {
    bytes: usize,
    max: usize,
    rings: Vec<Slot>,
    /// Free rings with pages, last used last.
    warm: Vec<usize>,
    /// Free rings without pages.
    cold: Vec<usize>,
}

#[derive(Debug)]
struct Slot {
    start: NonNull<u8>,
    taken: bool,
}

impl MappedRings {
    /// At most `max` rings of `bytes` each; nothing is mapped yet.
    pub fn new(bytes: usize, max: usize) -> Self {
        Self {
            bytes,
            max,
            rings: Vec::new(),
            warm: Vec::new(),
            cold: Vec::new(),
        }
    }

    /// Rings that are taken now.
    pub fn taken(&self) -> usize {
        self.rings.len() - self.warm.len() - self.cold.len()
    }

    fn free(&mut self) -> Option<usize> {
        if let Some(id) = self.warm.pop().or_else(|| self.cold.pop()) {
            return Some(id);
        }
        self.map_slab();
        self.cold.pop()
    }

    /// One mapping more, if allowed and possible.
    fn map_slab(&mut self) {
        let count = SLAB.min(self.max - self.rings.len());
        let Some(length) = NonZeroUsize::new(count * self.bytes) else {
            return;
        };
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice aliases nothing.
        let slab = match unsafe { mmap_anonymous(None, length, protection, flags) } {
            Ok(slab) => slab,
            Err(error) => {
                tracing::warn!(%error, bytes = length.get(), "no memory for more flows");
                return;
            }
        };
        // A huge page would tie 2 MiB to a ring that holds a few bytes. Kernels without huge pages refuse; no matter.
        // SAFETY: the range is the mapping just made.
        let _ = unsafe { madvise(slab, length.get(), MmapAdvise::MADV_NOHUGEPAGE) };
        let first = self.rings.len();
        for index in 0..count {
            // SAFETY: index * bytes is inside the mapping.
            let start = unsafe { slab.cast::<u8>().add(index * self.bytes) };
            self.rings.push(Slot { start, taken: false });
        }
        self.cold.extend((first..first + count).rev());
    }

    /// Gives the pages of a free ring back to the kernel.
    fn cool(&mut self, id: usize) {
        // SAFETY: the range is one ring of a live mapping, and as it is free nothing refers to it.
        let _ = unsafe {
            madvise(
                self.rings[id].start.cast::<c_void>(),
                self.bytes,
                MmapAdvise::MADV_DONTNEED,
            )
        };
        self.cold.push(id);
    }
}

impl RingMemory for MappedRings {
    fn take(&mut self) -> Option<Ring> {
        let id = self.free()?;
        let slot = &mut self.rings[id];
        slot.taken = true;
        // SAFETY: the range is one ring of a mapping that is never unmapped, so 'static is true; it was free, so that
        // nothing else refers to it; anonymous memory is initialised (zero, or what was written before).
        let memory: &'static mut [u8] = unsafe { std::slice::from_raw_parts_mut(slot.start.as_ptr(), self.bytes) };
        Some(Ring {
            id,
            memory: memory.into(),
        })
    }

    fn give(&mut self, id: usize) {
        let Some(slot) = self.rings.get_mut(id).filter(|slot| slot.taken) else {
            debug_assert!(false, "ring {id} was given back without being taken");
            return;
        };
        slot.taken = false;
        if self.warm.len() < WARM {
            self.warm.push(id);
        } else {
            self.cool(id);
        }
    }
}

impl Drop for MappedRings {
    /// The mappings stay, since a ring may still be referred to; the free ones keep no pages.
    fn drop(&mut self) {
        for id in std::mem::take(&mut self.warm) {
            self.cool(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 64 << 10;

    #[test]
    fn no_more_rings_than_allowed() {
        let mut rings = MappedRings::new(BYTES, 3);
        let ids: Vec<usize> = std::iter::from_fn(|| rings.take().map(|ring| ring.id)).collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(rings.taken(), 3);
        rings.give(ids[1]);
        assert_eq!(rings.taken(), 2);
        assert_eq!(rings.take().unwrap().id, ids[1]);
        assert!(rings.take().is_none());
    }

    #[test]
    fn rings_do_not_overlap_and_are_reused_as_they_are() {
        let mut rings = MappedRings::new(BYTES, 200);
        let mut taken: Vec<Ring> = (0..200).map(|_| rings.take().unwrap()).collect();
        for (number, ring) in taken.iter_mut().enumerate() {
            assert_eq!(ring.memory.len(), BYTES);
            ring.memory.fill(number as u8);
        }
        for (number, ring) in taken.iter().enumerate() {
            assert!(ring.memory.iter().all(|byte| *byte == number as u8), "ring {number}");
        }
        for ring in taken {
            let id = ring.id;
            drop(ring);
            rings.give(id);
        }
        assert_eq!(rings.taken(), 0);
        assert_eq!(rings.warm.len(), WARM);
        let warm = rings.take().unwrap();
        assert_eq!(warm.memory[0], (WARM - 1) as u8, "the last one kept warm, not zeroed");
    }

    #[test]
    fn a_cold_ring_has_no_pages() {
        let mut rings = MappedRings::new(BYTES, 200);
        let taken: Vec<usize> = (0..200)
            .map(|_| {
                let mut ring = rings.take().unwrap();
                ring.memory.fill(7);
                ring.id
            })
            .collect();
        for id in taken {
            rings.give(id);
        }
        rings.warm.clear();
        assert_eq!(rings.take().unwrap().memory[0], 0);
    }
}
