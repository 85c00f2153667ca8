//! Memory for the rings of flows: mapped in blocks, handed out without zeroing, taken back, and given back to the kernel
//! page by page when more than a few are idle.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use mesh_core::engine::{Ring, RingMemory};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};

/// A slab of rings. Its mappings live as long as the process, because rings are `'static`.
#[derive(Debug)]
pub struct RingSlab {
    bytes: usize,
    most: usize,
    blocks: Vec<NonNull<u8>>,
    free: Vec<usize>,
}

// SAFETY: the pointers are to private anonymous memory that only this value hands out.
unsafe impl Send for RingSlab {}

impl RingSlab {
    /// At most `most` rings of `bytes` (a multiple of the page size); nothing is mapped yet.
    pub fn new(bytes: usize, most: usize) -> Self {
        Self { bytes, most, blocks: Vec::new(), free: Vec::new() }
    }

    fn grow(&mut self) -> Option<()> {
        if (self.blocks.len() + 1) * RINGS_PER_BLOCK > self.most.next_multiple_of(RINGS_PER_BLOCK) {
            return None;
        }
        let length = NonZeroUsize::new(self.bytes * RINGS_PER_BLOCK)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping aliases nothing.
        let block = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }.ok()?;
        let first = self.blocks.len() * RINGS_PER_BLOCK;
        self.blocks.push(block.cast());
        self.free.extend((first..first + RINGS_PER_BLOCK).rev());
        Some(())
    }

    fn start(&self, id: usize) -> NonNull<u8> {
        let block = self.blocks[id / RINGS_PER_BLOCK];
        // SAFETY: the offset is within the block, which holds RINGS_PER_BLOCK rings.
        unsafe { block.add(id % RINGS_PER_BLOCK * self.bytes) }
    }
}

impl RingMemory for RingSlab {
    fn take(&mut self) -> Option<Ring> {
        if self.free.is_empty() {
            self.grow()?;
        }
        let id = self.free.pop()?;
        // SAFETY: the ring is mapped, readable and writable for `bytes`, and initialised (anonymous pages are zero). It was
        // on the free list, so that nothing else refers to it until the engine, having dropped its socket, gives it back.
        let memory = unsafe { std::slice::from_raw_parts_mut(self.start(id).as_ptr(), self.bytes) };
        Some(Ring { id, memory: memory.into() })
    }

    fn give(&mut self, id: usize) {
        if self.free.len() >= WARM_RINGS {
            // SAFETY: nothing refers to the ring any more; its pages read as zero when they are touched again.
            let _ = unsafe { madvise(self.start(id).cast(), self.bytes, MmapAdvise::MADV_DONTNEED) };
        }
        self.free.push(id);
    }
}

const RINGS_PER_BLOCK: usize = 64;
/// Free rings that keep their pages, for the next flows.
const WARM_RINGS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_apart_and_come_back() {
        let mut slab = RingSlab::new(65_536, 100);
        let mut rings: Vec<_> = (0..128).map_while(|_| slab.take()).collect();
        assert_eq!(rings.len(), 128, "rounded up to whole blocks");
        assert!(slab.take().is_none());
        for (number, ring) in rings.iter_mut().enumerate() {
            ring.memory.fill(number as u8);
        }
        assert!(rings.iter().enumerate().all(|(number, ring)| ring.memory.iter().all(|byte| *byte == number as u8)));
        for ring in rings.drain(..) {
            slab.give(ring.id);
        }
        assert!(slab.take().is_some());
    }
}
