//! Which branches of the readers have run, as rustc's own instrumentation counts them.
//!
//! `tests/fuzz/instrument` builds the readers with `-C instrument-coverage` and this crate with `cfg(guided)`. Each
//! region of code then has a counter of 64 bits in one section of the program, between two symbols that every ELF
//! linker defines. LLVM's own runtime, which would write them to a file, is not linked.

/// What has been seen so far.
#[derive(Default)]
pub struct Coverage {
    /// Of each counter, which powers of two it has reached in one run.
    seen: Vec<u8>,
    features: usize,
}

// === impl Coverage ===

impl Coverage {
    /// Forgets the last run.
    pub fn begin() {
        counters().fill(0);
    }

    /// How much ran that no run before did.
    pub fn end(&mut self) -> usize {
        let counters = counters();
        self.seen.resize(counters.len(), 0);
        let before = self.features;
        for (counter, seen) in counters.iter().zip(&mut self.seen) {
            if *counter != 0 {
                let bit = 1 << counter.ilog2().min(7);
                self.features += usize::from(*seen & bit == 0);
                *seen |= bit;
            }
        }
        self.features - before
    }

    /// How much there was in all; 0 where nothing is counted.
    pub fn features(&self) -> usize {
        self.features
    }
}

#[cfg(guided)]
fn counters() -> &'static mut [u64] {
    unsafe extern "C" {
        #[link_name = "__start___llvm_prf_cnts"]
        static mut START: u64;
        #[link_name = "__stop___llvm_prf_cnts"]
        static mut STOP: u64;
    }
    // SAFETY: the linker defines both around one section, whose counters are written by instrumented code alone; that
    // runs on the one thread which also calls this, and never at the same time.
    unsafe {
        let (start, stop) = (&raw mut START, &raw mut STOP);
        let length = usize::try_from(stop.offset_from(start)).unwrap_or(0);
        std::slice::from_raw_parts_mut(start, length)
    }
}

#[cfg(not(guided))]
fn counters() -> &'static mut [u64] {
    &mut []
}
