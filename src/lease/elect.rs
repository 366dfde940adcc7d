//! Who holds the Lease, by what was seen of it. Pure: requests go out as [`Ask`] and come back as [`Answer`].
//!
//! | what the Lease says | what is done |
//! |---|---|
//! | nothing | its holder makes it again at once, others after [`Timing::lease`] |
//! | nobody holds it | taken |
//! | ours, from before a restart or by a write whose answer was lost | taken again |
//! | another's, changed since the last look | looked at again |
//! | another's, the same for [`Timing::lease`] | taken |
//! | for [`Timing::lease`] that we may not read or write it, and nobody else was ever seen at it | we are the only instance |
//! | no answer | its holder is cautious once the proof is over; nobody else becomes active |
//!
//! A start that finds no Lease cannot tell one that never was from one that was just deleted under a holder that still
//! has proof; so it waits as well, once in the life of a Lease. A 403 may come from an apiserver that has yet to read
//! who may what. Whoever has nothing to publish, or shall not, renews what it holds and takes nothing:
//! [`Elector::allow`].
//!
//! Each time it changes hands the generation goes up, even from an instance to itself: a term that was once given
//! up is never taken for the one that follows.

use crate::Uptime;
use crate::kubernetes::lease::{Draft, Record};

use super::{Role, Term, Timing};

/// The largest `leaseTransitions` (a 32-bit number of the API); one beyond it is nobody's.
pub const GENERATION_MAX: u64 = i32::MAX as u64;
/// After a write that found another version; whoever wrote that one is read next.
const CONFLICT_PAUSE: Uptime = Uptime::from_millis(100);
/// Where there is no Lease to be had it is looked for this often: a right may be granted.
const ALONE_RETRY: Uptime = Uptime::from_secs(30);
/// Whoever runs without a Lease yields to one that has it, for this long after hearing of it: three intervals of
/// 20 s, half of what routers keep.
const ALONE_YIELDS: Uptime = Uptime::from_mins(1);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read it.
    Look,
    /// Write it.
    Write(Draft),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was read.
    Seen(Record),
    /// There is none.
    Absent,
    /// The draft was written; this is what stands now.
    Written(Record),
    /// Another version stands, or none.
    Conflict,
    /// We may not, or the cluster has no such thing.
    Denied,
    /// Nobody knows.
    Failed,
}

/// What a word from another instance means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// Another instance acts under an older generation than ours.
    Deposed,
    /// Ours is over.
    StoodDown,
}

/// What a record that was read is to whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The first that was seen of this Lease, or since this process stood still: nobody knows how old it is.
    First,
    /// Nobody wrote since the last look.
    Same,
    /// Somebody wrote since the last look.
    Fresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    generation: u64,
    /// When the renewal was sent that proves it.
    renewed: Uptime,
    /// Not once this process or its machine stood still since then.
    proven: bool,
}

/// What was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Last {
    /// Nothing was read yet.
    Unknown,
    /// This record, without a sign of life since then.
    Record(Record, Uptime),
    /// There is none, since then.
    Absent { since: Uptime },
}

/// One instance's mind.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of one another"
)]
pub struct Elector {
    identity: String,
    timing: Timing,
    last: Last,
    /// What was read last may be of the past: look before writing.
    stale: bool,
    held: Option<Held>,
    /// The generation this instance last tried to hold.
    claimed: Option<u64>,
    /// The generation under which the process before this one held the Lease, until an answer is had.
    inherited: Option<u64>,
    /// The highest generation ever heard of.
    highest: u64,
    /// Another instance was seen to renew the Lease.
    met_other: bool,
    /// A write over an earlier record went well: a right that is missing later was taken away.
    may_update: bool,
    /// When this process was seen to have stood still; nothing it knew from before then counts.
    thawed: Option<Uptime>,
    /// When another instance's word ended the last term; what was sent before proves nothing.
    deposed: Option<Uptime>,
    alone: bool,
    /// Since when each answer was that we may not.
    denied: Option<Uptime>,
    /// Whether a Lease that is free may be taken.
    allowed: bool,
    yields_until: Uptime,
    next_at: Uptime,
}

// === impl Elector ===

impl Elector {
    /// Nothing is known yet, and nothing is taken before [`Self::allow`]. `inherited` is the generation under which
    /// the process before this one held the Lease when it last said so.
    #[must_use]
    pub fn new(identity: String, timing: Timing, inherited: Option<u64>) -> Self {
        Self {
            identity,
            timing,
            last: Last::Unknown,
            stale: false,
            held: None,
            claimed: None,
            inherited,
            highest: inherited.unwrap_or_default(),
            met_other: false,
            may_update: false,
            thawed: None,
            deposed: None,
            alone: false,
            denied: None,
            allowed: false,
            yields_until: Uptime::ZERO,
            next_at: Uptime::ZERO,
        }
    }

    /// What this instance may do.
    #[must_use]
    pub fn role(&self, now: Uptime) -> Role {
        if self.alone {
            return if now < self.yields_until {
                Role::Standby
            } else {
                Role::ALONE
            };
        }
        if self.thawed.is_some() {
            return Role::Standby;
        }
        match (self.held, self.inherited) {
            (
                Some(Held {
                    generation,
                    renewed,
                    proven,
                }),
                _,
            ) => {
                let until = renewed + self.timing.renew;
                if proven && now <= until {
                    Role::Active { generation, until }
                } else {
                    Role::Cautious { generation }
                }
            }
            (None, Some(generation)) => Role::Cautious { generation },
            (None, None) => Role::Standby,
        }
    }

    /// Who holds it, as far as that is known; nobody is empty.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        match &self.last {
            Last::Record(record, _) => Some(&record.holder),
            Last::Unknown | Last::Absent { .. } => None,
        }
    }

    /// The generation that was last read.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        match &self.last {
            Last::Record(record, _) => Some(record.generation),
            Last::Unknown | Last::Absent { .. } => None,
        }
    }

    /// When the renewal was sent that was last confirmed.
    #[must_use]
    pub fn renewed(&self) -> Option<Uptime> {
        self.held.map(|held| held.renewed)
    }

    /// Whether there is no Lease to be had.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// When [`Self::ask`] has something to say.
    #[must_use]
    pub fn asks_at(&self) -> Uptime {
        self.next_at
    }

    /// When time alone changes the role.
    #[must_use]
    pub fn changes_at(&self, now: Uptime) -> Option<Uptime> {
        let held = self.held.filter(|held| held.proven);
        let over = held.map(|held| held.renewed + self.timing.renew);
        let over = over.filter(|over| *over >= now);
        let over = over.map(|over| over + Uptime::from_nanos(1));
        over.or(Some(self.yields_until).filter(|until| self.alone && *until > now))
    }

    /// Whether a Lease that is free may be taken: by whoever has a table, and was not told to give it up. One that is
    /// held is renewed all the same.
    pub fn allow(&mut self, allowed: bool, now: Uptime) {
        let begins = allowed && !self.allowed;
        self.allowed = allowed;
        if begins && self.is_takeable(now) {
            self.next_at = now;
        }
    }

    /// What a record is that was read and not yet taken in. The same name may be another Lease's by now: it was made
    /// anew, or another cluster answers.
    #[must_use]
    pub fn sight(&self, record: &Record) -> Sight {
        match &self.last {
            _ if self.thawed.is_some() => Sight::First,
            Last::Record(old, _) if old.uid != record.uid => Sight::First,
            Last::Record(old, _) if old.sign_of_life() == record.sign_of_life() => Sight::Same,
            Last::Record(..) => Sight::Fresh,
            Last::Unknown | Last::Absent { .. } => Sight::First,
        }
    }

    /// What to ask now.
    #[must_use]
    pub fn ask(&mut self, now: Uptime) -> Option<Ask> {
        if now < self.next_at {
            return None;
        }
        if self.stale {
            return Some(Ask::Look);
        }
        let (version, generation, acquires) = match (&self.last, self.held) {
            (Last::Record(record, _), Some(held)) => {
                (Some(record.version.clone()), held.generation, false)
            }
            (Last::Record(record, _), None) if self.allowed && self.is_takeable(now) => {
                (Some(record.version.clone()), self.next_generation(), true)
            }
            (Last::Absent { .. }, _) if self.allowed && self.is_takeable(now) => {
                (None, self.next_generation(), true)
            }
            (Last::Unknown | Last::Record(..) | Last::Absent { .. }, _) => return Some(Ask::Look),
        };
        self.claimed = Some(generation);
        Some(Ask::Write(Draft {
            version,
            holder: self.identity.clone(),
            generation,
            acquires,
        }))
    }

    /// Takes in what became of a request that was sent then.
    pub fn absorb(&mut self, ask: &Ask, sent: Uptime, answer: Answer, now: Uptime) {
        self.next_at = now + self.timing.retry;
        // That another version stands says that somebody wrote, not who.
        let tells = answer != Answer::Conflict;
        self.thawed = self.thawed.filter(|thawed| !tells || sent < *thawed);
        let denied = answer == Answer::Denied;
        self.denied = denied.then(|| self.denied.unwrap_or(now));
        if answer == Answer::Failed {
            self.lost_sight(now);
        }
        match (ask, answer) {
            (_, Answer::Seen(record)) => self.seen(record, now),
            (Ask::Look, Answer::Absent) => self.gone(now),
            (Ask::Write(draft), Answer::Written(record)) => {
                self.alone = false;
                self.inherited = None;
                self.may_update |= draft.version.is_some();
                self.highest = self.highest.max(record.generation);
                self.last = Last::Record(record, now);
                self.stale = self.deposed.is_some_and(|deposed| sent <= deposed);
                if self.stale {
                    self.next_at = now;
                } else {
                    self.held = Some(Held {
                        generation: draft.generation,
                        renewed: sent,
                        proven: self.thawed.is_none(),
                    });
                }
            }
            (_, Answer::Conflict | Answer::Absent | Answer::Written(_)) => {
                self.stale = true;
                self.next_at = now + CONFLICT_PAUSE;
            }
            (_, Answer::Denied) if !self.met_other && !self.may_update => self.denied(now),
            (_, Answer::Denied | Answer::Failed) => {}
        }
    }

    /// The process stood still, perhaps for so long that another took over. Until something is asked and answered, or
    /// known not to be answered, it stands by; and what was proven before is proven only by the next renewal: our own
    /// clock may have stood still as well.
    pub fn thaw(&mut self, now: Uptime) {
        self.thawed = Some(now);
        if let Some(held) = &mut self.held {
            held.proven = false;
        }
        self.lost_sight(now);
        self.next_at = now;
    }

    /// Takes in what another instance says of itself.
    pub fn hear(&mut self, term: &Term, now: Uptime) -> Heard {
        let Term { generation, holder } = term;
        let own = *holder == self.identity && Some(*generation) == self.claimed.or(self.inherited);
        if own || *generation > GENERATION_MAX {
            return Heard::Nothing;
        }
        self.highest = self.highest.max(*generation);
        if self.alone {
            self.yields_until = now + ALONE_YIELDS;
            return Heard::StoodDown;
        }
        match self.held.map(|held| held.generation).or(self.inherited) {
            None => Heard::Nothing,
            Some(mine) if *generation > mine => {
                self.held = None;
                self.inherited = None;
                self.deposed = Some(now);
                // The Lease itself may say that it is ours all the same, and then under a still higher one.
                self.stale = true;
                self.next_at = now;
                Heard::StoodDown
            }
            Some(_) => Heard::Deposed,
        }
    }

    /// What to write at the end, so that another need not wait; nothing is held after that.
    pub fn release(&mut self) -> Option<Draft> {
        let held = self.held.take()?;
        let Last::Record(record, _) = &self.last else {
            return None;
        };
        Some(Draft {
            version: Some(record.version.clone()),
            holder: String::new(),
            generation: held.generation,
            acquires: false,
        })
    }

    fn denied(&mut self, now: Uptime) {
        let over = self.denied.unwrap_or(now) + self.timing.lease;
        if !self.alone && now < over {
            self.next_at = self.next_at.min(over);
            return;
        }
        self.alone = true;
        self.held = None;
        self.inherited = None;
        self.next_at = now + ALONE_RETRY;
    }

    fn seen(&mut self, record: Record, now: Uptime) {
        let first = matches!(self.last, Last::Unknown);
        let ours = record.holder == self.identity;
        self.inherited = None;
        self.stale = false;
        self.highest = self.highest.max(record.generation);
        if self
            .held
            .is_some_and(|held| !ours || held.generation != record.generation)
        {
            self.held = None;
        }
        if first && ours {
            // Of the process before this one, whose name we bear.
            self.claimed = Some(record.generation);
        }
        let since = match &self.last {
            Last::Record(old, since) if old.sign_of_life() == record.sign_of_life() => *since,
            Last::Record(..) => {
                self.met_other |= !ours && !record.holder.is_empty();
                now
            }
            Last::Unknown | Last::Absent { .. } => now,
        };
        let free = self.is_free(&record, since, now) || self.held.is_some();
        // Where the right to write is missing, looking again changes nothing.
        self.alone &= free;
        // Twice as often as it is renewed: how late the last renewal was seen delays a takeover.
        let next = now + self.timing.retry / 2;
        self.next_at = match (free, self.allowed || self.held.is_some()) {
            (true, true) => now,
            (true, false) => next,
            (false, _) => next.min(since + self.timing.lease),
        };
        self.last = Last::Record(record, since);
    }

    /// While nobody looked a Lease may have come and gone, and left its holder with proof.
    fn lost_sight(&mut self, now: Uptime) {
        if let Last::Absent { since } = &mut self.last {
            *since = now;
        }
    }

    fn gone(&mut self, now: Uptime) {
        self.stale = false;
        if !matches!(self.last, Last::Absent { .. }) {
            self.last = Last::Absent { since: now };
        }
        let proven = self.role(now).is_active();
        if !proven {
            self.held = None;
        }
        if self.allowed
            && let Last::Absent { since } = self.last
        {
            let takeable = if proven {
                now
            } else {
                since + self.timing.lease
            };
            self.next_at = self.next_at.min(takeable).max(now);
        }
    }

    /// Whether what was read last may be taken by whoever is allowed to.
    fn is_takeable(&self, now: Uptime) -> bool {
        match &self.last {
            Last::Unknown => false,
            Last::Record(record, since) => self.is_free(record, *since, now),
            // Whoever held it may have proof for as long as anybody who went silent.
            Last::Absent { since } => self.held.is_some() || *since + self.timing.lease <= now,
        }
    }

    fn is_free(&self, record: &Record, since: Uptime, now: Uptime) -> bool {
        let ours = record.holder == self.identity && self.claimed == Some(record.generation);
        record.holder.is_empty() || ours || since + self.timing.lease <= now
    }

    fn next_generation(&self) -> u64 {
        (self.highest + 1).min(GENERATION_MAX)
    }
}

#[cfg(test)]
mod tests;
