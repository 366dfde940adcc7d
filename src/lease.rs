//! Two instances, one that acts: who holds the Lease, how the lanes are told, and what instances tell each other.
//!
//! ```text
//!  Lease (apiserver) ◀──▶ task ──▶ elect (pure) ──Role──▶ both lanes
//!                           ▲                               │ lane http: the generation, each interval
//!                           └──── higher generation ◀── NATS ◀┘
//! ```
//!
//! Publishing twice harms nobody: a row and a registration are the same whoever sends them. So the Lease decides
//! about two things alone: who goes on when the other is gone, and who may *remove*. A removal needs proof that the
//! Lease is held, which is a renewal that was sent less than [`Timing::renew`] ago by our own clock; another takes
//! the Lease over only once it saw nothing of us for [`Timing::lease`]. No clock is ever compared with another's.

mod approvals;
mod elect;
mod holders;
mod role;
mod task;

use std::time::Duration;

pub use approvals::{decode as decode_approvals, encode as encode_approvals};
pub use elect::{Answer, Ask, Elector, GENERATION_MAX, Heard, Sight};
pub use holders::{decode as decode_holders, encode as encode_holders};
pub use role::{Role, Roles, Term};
pub use task::{Channels, Instances, Kept, Lease, LeaseReport, identity};

/// How long everything about the Lease takes: client-go's defaults, which every cluster bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Without a sign of its holder for so long it is free.
    pub lease: Duration,
    /// So long after a renewal its holder has proof. The difference to [`Self::lease`] is what a removal that was
    /// just sent may take to arrive.
    pub renew: Duration,
    /// Between two requests.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}
