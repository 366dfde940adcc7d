//! What an instance may do now. Pure: a value, handed to the lanes through a channel.
//!
//! | role | announces, refreshes | adds | removes |
//! |---|---|---|---|
//! | active | yes | yes | while it has proof |
//! | cautious | what it had confirmed | no | no |
//! | standby | no | no | no |

use tokio::sync::watch;

use crate::Uptime;

/// Whoever decides says at once that proof is over; a process that hears nothing of it for so long did not run.
pub(super) const UNTOLD_MAX: Uptime = Uptime::from_secs(2);

/// What an instance may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds the Lease, or it is the only instance.
    Active {
        /// Counts up each time the Lease changes hands; 0 without a Lease.
        generation: u64,
        /// Until when that is proven.
        until: Uptime,
    },
    /// It held the Lease and cannot renew it: another may hold it.
    Cautious {
        /// Under which it held the Lease.
        generation: u64,
    },
    /// Another holds the Lease, or nobody knows who does.
    Standby,
}

/// Where a lane reads what it may do.
#[derive(Clone, Debug)]
pub struct Roles(watch::Receiver<Role>);

/// What an instance that acts tells the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// Of its Lease.
    pub generation: u64,
    /// Who it is.
    pub holder: String,
}

// === impl Role ===

impl Role {
    /// The only instance there is.
    pub const ALONE: Self = Self::Active {
        generation: 0,
        until: Uptime::MAX,
    };

    /// The same at a moment: without proof nobody is active, and whoever was told nothing since then was frozen, and
    /// says nothing before it knows what happened meanwhile.
    #[must_use]
    pub fn at(self, now: Uptime) -> Self {
        match self {
            Self::Active { until, .. } if until.saturating_add(UNTOLD_MAX) < now => Self::Standby,
            Self::Active { generation, until } if until < now => Self::Cautious { generation },
            role => role,
        }
    }

    /// Whether it acts as it sees fit; to be asked of [`Self::at`].
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Active { .. })
    }

    /// Whether it says nothing at all.
    #[must_use]
    pub fn is_standby(self) -> bool {
        self == Self::Standby
    }

    /// Under which generation it acts; nothing where there is no Lease.
    #[must_use]
    pub fn generation(self) -> Option<u64> {
        match self {
            Self::Active { generation, .. } | Self::Cautious { generation } => Some(generation),
            Self::Standby => None,
        }
        .filter(|generation| *generation > 0)
    }

    /// As it is written everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active { .. } => "active",
            Self::Cautious { .. } => "cautious",
            Self::Standby => "standby",
        }
    }

    /// Whether a lane has to act on the difference; that a proof was renewed is none.
    #[must_use]
    pub fn differs(self, other: Self) -> bool {
        (self.as_str(), self.generation()) != (other.as_str(), other.generation())
    }
}

// === impl Roles ===

impl Roles {
    /// Reads what whoever holds the other end decides.
    #[must_use]
    pub fn new(roles: watch::Receiver<Role>) -> Self {
        Self(roles)
    }

    /// Of the only instance.
    #[must_use]
    pub fn alone() -> Self {
        Self(watch::channel(Role::ALONE).1)
    }

    /// What may be done at this moment.
    #[must_use]
    pub fn at(&self, now: Uptime) -> Role {
        self.0.borrow().at(now)
    }

    /// Waits until it is another. Whoever decided and decides no more leaves what it said last, for as long as
    /// that is proven.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self::alone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn without_proof_nobody_is_active() {
        let until = Duration::from_secs(10);
        let active = Role::Active {
            generation: 3,
            until,
        };
        assert!(active.at(until).is_active());
        let late = active.at(until + Duration::from_nanos(1));
        assert_eq!(late, Role::Cautious { generation: 3 });
        let thawed = active.at(until + Duration::from_mins(1));
        assert!(thawed.is_standby(), "nobody knows what happened meanwhile");
        assert!(Role::ALONE.at(Uptime::MAX).is_active());
        assert_eq!(Role::ALONE.generation(), None);
        assert!(Role::Standby.at(until).is_standby());
    }

    #[test]
    fn a_renewed_proof_is_no_difference() {
        let active = |generation, secs| Role::Active {
            generation,
            until: Duration::from_secs(secs),
        };
        assert!(!active(1, 10).differs(active(1, 12)));
        assert!(active(1, 10).differs(active(2, 10)));
        assert!(active(1, 10).differs(Role::Cautious { generation: 1 }));
        assert!(Role::Standby.differs(Role::ALONE));
    }
}
