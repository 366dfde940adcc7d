//! What is held, under which hash, and the words for it. It knows nothing of how that was decided.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use super::Limits;
use crate::desired::{Code, Desired, Finding, Subject};
use crate::route::{Lane, RouteTable, RouterPort, ServiceKey, Uri, stable_hash};

/// Removals that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Names just these removals.
    pub plan: PlanHash,
    /// What may go without anybody's word.
    pub limits: Limits,
    /// Why.
    pub reasons: BTreeSet<Reason>,
    /// Each route, in order.
    pub routes: Vec<HeldRoute>,
}

/// A route that nothing asks for and that is kept alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRoute {
    /// Its name on the router.
    pub name: Name,
    /// The Service it came from.
    pub service: ServiceKey,
}

/// A route's name on its router.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Of gorouter.
    Http(Uri),
    /// Of the tcp-router.
    Tcp(RouterPort),
}

/// Why a removal is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Too many at once.
    TooMany(Lane),
    /// A list lacks every route of the lane.
    EveryRoute(Lane),
    /// Another cluster speaks, and does not know them.
    AnotherCluster,
}

/// Stands for a set of removals: the same set has the same hash, in every instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlanHash(u64);

// === impl Held ===

impl Held {
    /// How many routes of a lane.
    #[must_use]
    pub fn count(&self, lane: Lane) -> usize {
        let of_lane = |route: &&HeldRoute| route.name.lane() == lane;
        self.routes.iter().filter(of_lane).count()
    }

    /// Why, each reason in words.
    #[must_use]
    pub fn why(&self) -> Vec<String> {
        let words = self.reasons.iter().map(|reason| reason.words(self.limits));
        words.collect()
    }

    pub(super) fn finding(&self) -> Finding {
        let routes = match self.routes.len() {
            1 => "1 route".to_owned(),
            count => format!("{count} routes"),
        };
        let (plan, reasons) = (self.plan, self.why().join("; "));
        let text = format!("the removal of {routes} is held as plan `{plan}`: {reasons}");
        let hint = format!(
            "`route-sync status` lists them; `route-sync approve {plan}` lets them go, and so do two further \
             complete lists that show the same"
        );
        Finding::new(Code::RemovalHeld, Subject::Cluster, text).hint(hint)
    }
}

// === impl Name ===

impl Name {
    pub(super) fn is_in(&self, table: &RouteTable) -> bool {
        match self {
            Self::Http(uri) => table.http.contains_key(uri),
            Self::Tcp(port) => table.tcp.contains_key(port),
        }
    }

    /// The lane it belongs to.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::Http(_) => Lane::Http,
            Self::Tcp(_) => Lane::Tcp,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(uri) => uri.fmt(f),
            Self::Tcp(port) => port.fmt(f),
        }
    }
}

// === impl Reason ===

impl Reason {
    fn words(self, limits: Limits) -> String {
        let Limits {
            routes,
            percent,
            window,
        } = limits;
        match self {
            Self::TooMany(lane) => format!(
                "more {lane} routes would go within {} s than {routes}, or {percent} % of all",
                window.as_secs()
            ),
            Self::EveryRoute(lane) => format!("a list lacks every {lane} route"),
            Self::AnotherCluster => "the apiserver answers as another cluster".to_owned(),
        }
    }
}

// === impl PlanHash ===

impl PlanHash {
    pub(super) fn of<'a>(names: impl Iterator<Item = &'a Name>, told: &Desired) -> Self {
        let mut text = String::new();
        for name in names {
            let service = match name {
                Name::Http(uri) => &told.table.http[uri].service,
                Name::Tcp(port) => &told.table.tcp[port].service,
            };
            let _ = writeln!(text, "{} {name} {}", name.lane(), service.key);
        }
        Self(stable_hash(text.into_bytes()))
    }

    /// Of the removal of one route alone.
    pub(super) fn of_one(name: &Name, service: &ServiceKey) -> Self {
        let text = format!("{} {name} {service}\n", name.lane());
        Self(stable_hash(text.into_bytes()))
    }

    /// Reads what [`Display`](fmt::Display) writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hash = Self(u64::from_str_radix(text, 16).ok()?);
        (hash.to_string() == text).then_some(hash)
    }

    /// Of giving all these routes up for those of another cluster.
    pub(super) fn of_switch(stranger: &str, routes: &[HeldRoute]) -> Self {
        let mut text = format!("cluster {stranger}\n");
        for HeldRoute { name, service } in routes {
            let _ = writeln!(text, "{} {name} {service}", name.lane());
        }
        Self(stable_hash(text.into_bytes()))
    }
}

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
