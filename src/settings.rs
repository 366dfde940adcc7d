//! Settings that may change while a part runs: what is wanted, and whether it is in use.
//!
//! Whoever reads the configuration holds [`Settings`], the part holds the [`Follower`]. A part proves what it was
//! given before it gives up what works: until then the old settings serve, and why the new ones do not is told
//! here. What the settings mean is the part's affair.

use tokio::sync::watch;

use crate::news;

/// The side that decides.
#[derive(Debug)]
pub struct Settings<C> {
    wanted: watch::Sender<(u64, C)>,
    outcome: watch::Receiver<Outcome>,
    /// For followers to come.
    tell: watch::Sender<Outcome>,
}

/// The part's side.
#[derive(Debug)]
pub struct Follower<C> {
    wanted: watch::Receiver<(u64, C)>,
    /// Which of them was taken last.
    taken: u64,
    tell: watch::Sender<Outcome>,
}

/// What became of a wish: its number, and why it is not in use.
type Outcome = (u64, Option<String>);

// === impl Settings ===

impl<C: Clone + PartialEq> Settings<C> {
    /// Settings with which a part begins.
    pub fn new(first: C) -> Self {
        let (tell, outcome) = watch::channel((0, None));
        Self {
            wanted: watch::Sender::new((0, first)),
            outcome,
            tell,
        }
    }

    /// What the part is to follow.
    #[must_use]
    pub fn follower(&self) -> Follower<C> {
        Follower {
            wanted: self.wanted.subscribe(),
            taken: 0,
            tell: self.tell.clone(),
        }
    }

    /// Wants others from now on, if these are others.
    pub fn want(&self, settings: C) {
        self.wanted.send_if_modified(|(number, wanted)| {
            let others = *wanted != settings;
            if others {
                *number += 1;
                *wanted = settings;
            }
            others
        });
    }

    /// Why what is wanted is not in use; `None` once it is.
    #[must_use]
    pub fn unused(&self) -> Option<String> {
        let wanted = self.wanted.borrow().0;
        match &*self.outcome.borrow() {
            (number, why) if *number == wanted => why.clone(),
            _ => Some("they are being tried".to_owned()),
        }
    }

    /// Waits until the part says something else. Safe to drop at any time.
    pub async fn told(&mut self) {
        // The other side is held by ourselves as well, so that it never ends.
        let _ = self.outcome.changed().await;
    }
}

// === impl Follower ===

impl<C: Clone> Follower<C> {
    /// What is wanted now.
    #[must_use]
    pub fn get(&mut self) -> C {
        let (number, wanted) = self.wanted.borrow_and_update().clone();
        self.taken = number;
        wanted
    }

    /// Waits for others; for ever where nobody decides any more. Safe to drop at any time.
    pub async fn changed(&mut self) -> C {
        match self.wanted.changed().await {
            Ok(()) => self.get(),
            Err(_) => std::future::pending().await,
        }
    }

    /// What was taken last is in use.
    pub fn in_use(&self) {
        self.tell.send_replace((self.taken, None));
    }

    /// What was taken last cannot be used yet. Whether that is news.
    #[must_use]
    pub fn refuse(&self, why: &str) -> bool {
        let outcome = (self.taken, Some(why.to_owned()));
        news::tell(&self.tell, outcome)
    }
}

/// Settings that never change.
impl<C: Clone + PartialEq> From<C> for Follower<C> {
    fn from(settings: C) -> Self {
        Settings::new(settings).follower()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wanted_counts_as_unused_until_the_part_says_otherwise() {
        let mut settings = Settings::new(1);
        let mut follower = settings.follower();
        assert_eq!((follower.get(), settings.unused()), (1, None));
        settings.want(1);
        assert_eq!(settings.unused(), None, "they are no others");
        settings.want(2);
        assert!(settings.unused().is_some());
        assert_eq!(follower.changed().await, 2);
        assert!(follower.refuse("no") && !follower.refuse("no"));
        settings.told().await;
        assert_eq!(settings.unused().as_deref(), Some("no"));
        follower.in_use();
        assert_eq!(settings.unused(), None);
    }

    #[tokio::test]
    async fn what_became_of_an_older_wish_says_nothing_of_a_newer_one() {
        let settings = Settings::new(1);
        let mut follower = settings.follower();
        settings.want(2);
        assert_eq!(follower.changed().await, 2);
        settings.want(3);
        follower.in_use();
        assert!(settings.unused().is_some());
    }
}
