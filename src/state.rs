//! What outlives the process: the table it published, what it was withdrawing, and the TCP rows that are its own.
//!
//! ```text
//!   file ──open──▶ Warm ──▶ lanes, before Kubernetes or UAA answer      lanes ──ledgers──▶ Keeper ──▶ file
//! ```
//!
//! One file, not one per lane: its parts are only true together. A route that left the table must be found among
//! the withdrawals, and both have one age and one foundation; two files would differ after every crash between
//! them. It is written whole, as every change of the table is (a table of 10,000 routes is some megabytes), by a
//! task of its own that takes the latest values from channels, so that no slow disk delays a lane.
//!
//! The keys of TLS backends have a file of their own (`publish::http::journal`): it is written *before* an
//! announcement, which nothing here ever waits for. No fault of this file is fatal: without it a start waits for
//! Kubernetes, as one without `state.dir` does.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::desired::Desired;
use crate::desired::guard::Remembered;
use crate::lease::Kept;
use crate::plan::TcpRow;
use crate::route::Uri;

mod file;
mod format;
mod keeper;
#[cfg(test)]
mod tests;

pub(crate) use file::Folder;
pub use file::StateError;
pub use format::FormatError;
pub use keeper::Keeper;

/// Whose state it is. All of it is known before anyone was asked anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foundation {
    /// `kubernetes.cluster_id`, else the apiserver's address.
    pub apiserver: String,
    /// The domain that bare hosts get.
    pub app_domain: String,
    /// The router group by name; `None` where the TCP lane is off.
    pub router_group: Option<String>,
    /// The routing API's URL.
    pub routing_api: Option<String>,
}

/// A key that must no longer lead anywhere, and whose withdrawal is still being repeated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Withdrawal {
    /// The route.
    pub uri: Arc<Uri>,
    /// The endpoint.
    pub addr: SocketAddr,
    /// Whether gorouter speaks TLS to it.
    pub tls: bool,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// When it was written, in seconds since 1970.
    pub written_secs: u64,
    /// Whose it is.
    pub foundation: Foundation,
    /// The table; without findings.
    pub desired: Arc<Desired>,
    /// What was being withdrawn.
    pub withdrawals: BTreeSet<Withdrawal>,
    /// Rows the routing API has confirmed to us.
    pub rows: BTreeSet<TcpRow>,
    /// Whether its instance held the Lease, where there is one.
    pub lease: Option<Kept>,
    /// Whose the table is, and what of it was held.
    pub guard: Remembered,
}

/// What a start begins with.
#[derive(Clone, Debug, Default)]
pub struct Warm {
    /// The last process's table, to be published until Kubernetes answers. What it lacks is no reason to remove
    /// anything.
    pub table: Option<Arc<Desired>>,
    /// What it was withdrawing; nothing without a table.
    pub withdrawals: BTreeSet<Withdrawal>,
    /// Rows that are ours whatever their age.
    pub rows: BTreeSet<TcpRow>,
    /// A table of the same foundation, however old: who held which name.
    pub holders: Option<Arc<Desired>>,
    /// Who the last process was among several, and whether it acted; the latter only together with its table.
    pub lease: Option<Kept>,
    /// Whose the table is, and what of it was held; nothing without a table.
    pub guard: Remembered,
}

/// What the HTTP lane last took and is still withdrawing.
#[derive(Clone, Debug, Default)]
pub struct HttpEntry {
    /// The table it applied last.
    pub applied: Option<Arc<Desired>>,
    /// Keys it withdraws.
    pub withdrawals: BTreeSet<Withdrawal>,
}

/// Where the lanes and the change guard note what must survive. Never waits.
#[derive(Clone, Debug)]
pub struct Ledgers {
    /// The HTTP lane's.
    pub http: watch::Sender<HttpEntry>,
    /// The TCP lane's.
    pub rows: watch::Sender<BTreeSet<TcpRow>>,
    /// Whether this instance acts, where several share the work.
    pub lease: watch::Sender<Option<Kept>>,
    /// The change guard's, noted before the table it belongs to is told.
    pub guard: watch::Sender<Remembered>,
}

/// Where state is kept, and how old it may be.
#[derive(Clone, Debug)]
pub struct Place {
    /// An existing folder.
    pub dir: PathBuf,
    /// Older state announces nothing.
    pub max_age: Duration,
}

/// The bytes that a state is kept as. What is promised: a write that was cut off leaves what was there before.
pub trait Disk: Send + Sync {
    /// What was written last; `None` where nothing ever was.
    fn read(&self, decode: Decode) -> BoxFuture<'static, Result<Option<Contents>, StateError>>;

    /// Replaces it, though nobody waits for the answer.
    fn write(&self, encode: Encode) -> BoxFuture<'static, Result<(), StateError>>;

    /// Seconds since 1970, by which the age of a state is told.
    fn unix_seconds(&self) -> u64;
}

/// Reads the bytes of a state. It takes a while, so that a disk does it where that keeps nobody waiting.
pub type Decode = fn(&[u8]) -> Result<Contents, FormatError>;

/// Makes the bytes of a state that is written at the second given, under the same condition.
pub type Encode = Box<dyn FnOnce(u64) -> Vec<u8> + Send>;

/// A state folder in use.
pub struct Opened {
    /// What the last process left.
    pub warm: Warm,
    /// For the lanes.
    pub ledgers: Ledgers,
    /// Writes what they note.
    pub keeper: Keeper,
}

/// Reads what the last process left. What cannot be used is said, and counts as none.
pub async fn open(place: Place, foundation: Foundation) -> Opened {
    let disk = Arc::new(Folder(place.dir.clone()));
    open_on(disk, place, foundation).await
}

/// The same on whatever disk.
pub async fn open_on(disk: Arc<dyn Disk>, place: Place, foundation: Foundation) -> Opened {
    let read = file::read_within(&*disk, &place.dir).await;
    let now = disk.unix_seconds();
    let (warm, unread) = match read {
        Ok(Some(contents)) => (Warm::of(contents, &foundation, place.max_age, now), None),
        Ok(None) => (Warm::default(), None),
        Err(error) => {
            let error = crate::causes::chain(&error);
            warn!(%error, "state ignored, routes wait for Kubernetes");
            (Warm::default(), Some(error))
        }
    };
    let ledgers = Ledgers::of(&warm);
    let keeper = Keeper::new((place, disk), foundation, &warm, ledgers.clone(), unread);
    Opened {
        warm,
        ledgers,
        keeper,
    }
}

// === impl Warm ===

impl Warm {
    /// What of these contents a process of this foundation may use at this moment.
    #[must_use]
    pub fn of(contents: Contents, foundation: &Foundation, max_age: Duration, now: u64) -> Self {
        let Contents {
            written_secs,
            foundation: theirs,
            desired,
            withdrawals,
            rows,
            lease,
            guard,
        } = contents;
        // Rows of another routing API are not those that this one lists.
        let rows = if theirs.routing_api == foundation.routing_api {
            rows
        } else {
            BTreeSet::new()
        };
        let cold = Self {
            rows,
            ..Self::default()
        };
        if theirs != *foundation {
            warn!(
                ?theirs,
                "state of another foundation, routes wait for Kubernetes"
            );
            return cold;
        }
        let holders = Some(desired.clone());
        let cold = Self {
            lease: lease.clone().map(|lease| Kept {
                held: false,
                ..lease
            }),
            ..cold
        };
        // A clock that was set back makes a state old, which costs a wait for Kubernetes; to take it for fresh
        // could announce what left days ago.
        let age = now.checked_sub(written_secs).map(Duration::from_secs);
        let age = age.filter(|age| *age <= max_age);
        let Some(age) = age else {
            warn!(
                written_secs,
                ?max_age,
                "state too old or from the future, routes wait for Kubernetes"
            );
            return Self { holders, ..cold };
        };
        let (http, tcp) = (desired.table.http.len(), desired.table.tcp.len());
        info!(?age, http, tcp, "routes of the last process taken over");
        Self {
            table: Some(desired),
            withdrawals,
            holders,
            lease,
            guard,
            ..cold
        }
    }
}

impl Opened {
    /// The same for a process whose table is its own from the first moment: of the last one's it needs to know only
    /// which rows are ours.
    #[must_use]
    pub fn rows_alone(mut self) -> Self {
        let rows = std::mem::take(&mut self.warm.rows);
        self.warm = Warm {
            rows,
            ..Warm::default()
        };
        self
    }
}

// === impl Ledgers ===

impl Ledgers {
    /// Begins with what the last process left.
    #[must_use]
    pub fn of(warm: &Warm) -> Self {
        let entry = HttpEntry {
            applied: None,
            withdrawals: warm.withdrawals.clone(),
        };
        Self {
            http: watch::Sender::new(entry),
            rows: watch::Sender::new(warm.rows.clone()),
            lease: watch::Sender::new(warm.lease.clone()),
            guard: watch::Sender::new(warm.guard.clone()),
        }
    }
}
