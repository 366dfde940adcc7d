//! Whatever strangers may send, fed to whoever reads it.
//!
//! A search of our own rather than a fuzzer's: those of libFuzzer and AFL need a nightly compiler or programs that
//! cargo alone does not bring. What makes them find things is known of rustc on stable as well: `-C
//! instrument-coverage` counts which branches run, and the counters lie in memory (`coverage`). An input that ran one
//! for the first time is kept and changed further (`search`, `mutate`). Without that flag, as in `cargo test`, the
//! same search goes on from the inputs that earlier ones kept in `corpus/`.
//!
//! A target is a function that panics where a property does not hold; `targets` says which those are.

pub mod corpus;
mod coverage;
mod mutate;
pub mod search;
pub mod targets;
