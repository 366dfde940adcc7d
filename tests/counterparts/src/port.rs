//! Ports for the programs' listeners.
//!
//! Most of the programs cannot be told "any port", so one is chosen for them: free at this moment,
//! never handed out twice by this process, and outside what the kernel gives to clients
//! (50000–60999 in the private network) and what Kubernetes gives to Services (30000–32767).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 20_000;
const COUNT: u16 = 9_000;

/// Test processes that run at the same time begin this far apart.
const STRIDE: u32 = 101;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nothing listens on, on any address.
pub fn free() -> u16 {
    let own = u16::try_from(std::process::id().wrapping_mul(STRIDE) % u32::from(COUNT))
        .expect("a remainder of a u16 must fit one");
    (0..COUNT)
        .map(|_| FIRST + (own + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .expect("one port of thousands must be free")
}
