//! An allocator that counts. Whoever measures installs it; figures are the whole process'.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Counts what it hands out.
pub struct Counting {
    bytes: bool,
}

/// How often memory was asked for so far.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes in use now.
pub fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Bytes in use at most so far.
pub fn highest() -> usize {
    HIGHEST.load(Ordering::Relaxed)
}

// === impl Counting ===

impl Counting {
    /// How often, and nothing else: what is timed at the same time is not held up for more.
    pub const fn often() -> Self {
        Self { bytes: false }
    }

    /// How often and how much.
    pub const fn often_and_much() -> Self {
        Self { bytes: true }
    }

    fn took(&self, size: usize) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if self.bytes {
            let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
            HIGHEST.fetch_max(live, Ordering::Relaxed);
        }
    }

    fn gave(&self, size: usize) {
        if self.bytes {
            LIVE.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is handed to the system's allocator as it came; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.took(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        self.gave(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.took(size);
        self.gave(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(place, layout, size) }
    }
}
