//! Strangers on our hosts: a host that others serve is not taken over by a label, and who joins one of ours is told.
//!
//! Only what was heard counts. Who has not listened for one interval cannot know who serves what, so until then
//! nothing is held back, and what we served before a restart comes up at once. A host that strangers served before
//! and that was claimed within that time is shared with them, and told. Without the right to listen everything is
//! claimed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{info, warn};

use super::HttpLane;
use crate::Uptime;
use crate::desired::{Code, Desired, Finding};
use crate::publish::http::bus::Overheard;
use crate::publish::http::strangers::{Endpoint, Strangers};
use crate::publish::http::wire;
use crate::publish::http::wire::overheard::{Reader, is_of};
use crate::publish::http::{add, set};
use crate::route::{HttpRoute, NodePort, ServiceKey, Uri};
use crate::status::{RouteReport, RouteState};

/// Messages read before anything else gets its turn: a few milliseconds.
const BATCH: usize = 1024;
/// Addresses named in a finding.
const NAMED_MAX: usize = 3;

/// What the lane knows of others.
#[derive(Default)]
pub(super) struct Foreign {
    strangers: Strangers,
    reader: Reader,
    /// The newest table as it was last looked after.
    watched: Option<Arc<Desired>>,
    /// The table as far as it was claimed when we last led.
    claimed: Option<Arc<Desired>>,
    /// Messages of others that came faster than they were read.
    dropped: u64,
    contests: BTreeMap<Uri, Contest>,
    /// The subject the server does not let us hear.
    denied: Option<&'static str>,
}

/// Strangers on a host that is wanted.
struct Contest {
    service: ServiceKey,
    endpoints: BTreeSet<Endpoint>,
    backends: Vec<String>,
    held: bool,
}

// === impl HttpLane ===

impl HttpLane {
    /// Takes in a batch of what others announced.
    pub(super) fn overhear(&mut self) {
        let now = self.clock.now();
        let (Some(bus), Some(desired)) = (&mut self.bus, &self.desired) else {
            // Before the first table nobody can tell our own nodes from strangers.
            if let Some(bus) = &mut self.bus {
                while bus.overheard().is_some() {}
            }
            return;
        };
        let follows = self.acting.follows();
        let mut heard = 0;
        while heard < BATCH as u64
            && let Some(message) = bus.overheard()
        {
            heard += 1;
            self.foreign.take(&message, desired, follows, now);
        }
        add(&self.counters.overheard, heard);
    }

    /// Follows the connection, the rights and time, and claims what strangers have left.
    pub(super) async fn listen(&mut self) {
        let now = self.clock.now();
        let connected = self.epoch.is_some() && self.desired.is_some();
        if let Some(bus) = &mut self.bus {
            bus.ask_to_hear().await;
            let denied = bus.cannot_hear();
            let dropped = bus.dropped();
            set(&self.counters.overheard_dropped, dropped);
            self.foreign.may_hear(denied);
            if std::mem::replace(&mut self.foreign.dropped, dropped) < dropped {
                self.foreign.strangers.begin_to_follow(now);
            }
        }
        let strangers = &mut self.foreign.strangers;
        if connected && self.foreign.denied != Some(wire::REGISTER) {
            strangers.listening(now);
        } else {
            strangers.deaf(now);
        }
        strangers.expire(now);
        set(&self.counters.strangers, strangers.len());
        if strangers.take_changed() {
            self.announce_recorded();
        }
    }

    /// The newest table without the hosts that strangers serve and we do not yet.
    pub(super) fn claim(&mut self, desired: &Arc<Desired>) -> Arc<Desired> {
        let (now, interval) = (self.clock.now(), self.schedule.interval());
        let strangers = &self.foreign.strangers;
        let follows = self.acting.follows();
        let listened = strangers.listened(now) >= interval;
        // Who follows and does not know what the one that leads serves goes by what it served when it led itself;
        // who never did leaves nothing out.
        let by_ear = follows && strangers.knows_ours(interval, now);
        let led = !follows || self.foreign.claimed.is_some();
        let knows = by_ear || (listened && led);
        let hold = !self.config.join_foreign && knows;
        let claimed = self.foreign.claim(desired, hold, by_ear);
        if !follows {
            self.foreign.claimed = Some(claimed.clone());
        }
        claimed
    }

    /// From now on another instance leads.
    pub(super) fn begin_to_follow(&mut self, now: Uptime) {
        self.foreign.strangers.begin_to_follow(now);
    }

    /// From the next turn on we lead: of the hosts that strangers serve we go on with those on which we heard the one
    /// before.
    pub(super) fn begin_to_lead(&mut self) {
        if let Some(desired) = self.desired.clone().filter(|_| !self.adds_nothing()) {
            self.foreign.claimed = Some(self.claim(&desired));
        }
    }

    /// Another instance leads.
    pub(super) fn follow(&mut self, now: Uptime) {
        self.foreign.strangers.follow(now);
    }

    /// When [`Self::listen`] has something to do though nothing is heard.
    pub(super) fn listen_deadline(&self) -> Option<Uptime> {
        self.foreign.strangers.deadline()
    }

    /// The routes that strangers keep from being announced, as people see them.
    pub(super) fn foreign_reports(&self) -> BTreeMap<String, RouteReport> {
        let held = self.foreign.contests.iter();
        held.filter(|(uri, contest)| contest.held && !self.schedule.knows(uri))
            .map(|(uri, contest)| {
                let name = uri.to_string();
                let before = self.held_told.get(&name);
                let report = RouteReport {
                    service: contest.service.clone(),
                    state: RouteState::Held,
                    backends: contest.backends.clone(),
                    since: before.map_or(self.clock.now(), |before| before.since),
                };
                (name, report)
            })
            .collect()
    }

    pub(super) fn foreign_findings(&self) -> impl Iterator<Item = Finding> {
        self.foreign.contests.iter().map(|(uri, contest)| {
            let who = named(&contest.endpoints);
            if contest.held {
                let text = format!("`{uri}` is not claimed: strangers serve its host at {who}");
                Finding::on_service(Code::HostForeign, &contest.service, text)
                    .hint("choose another host, or set `http.on_foreign_endpoint: join`")
            } else {
                let text = format!("requests to `{uri}` are shared with strangers at {who}");
                Finding::on_service(Code::HostForeignJoined, &contest.service, text)
                    .hint("find who else registers the host; route-sync never unregisters it")
            }
        })
    }

    /// Whether others are heard at all.
    pub(super) fn foreign_fact(&self) -> String {
        match self.foreign.denied {
            Some(subject) => format!(
                "degraded: NATS denies subscribing to `{subject}`, so strangers on a host are not known; hint: grant it to the user of `nats`"
            ),
            None => "heard on `router.register`".to_owned(),
        }
    }
}

// === impl Foreign ===

impl Foreign {
    fn take(&mut self, message: &Overheard, desired: &Desired, follows: bool, now: Uptime) {
        let Some(speaker) = self.reader.read(&message.body) else {
            return;
        };
        let endpoint = speaker.endpoint;
        if message.withdrawal {
            for place in self.reader.places() {
                self.strangers.withdrawn(*place, endpoint);
            }
            return;
        }
        let mut ours = speaker
            .address
            .is_some_and(|address| is_ours(desired, address));
        let mut is_stranger = false;
        for place in self.reader.places() {
            if ours {
                break;
            }
            if self.strangers.heard_again(*place, endpoint, now) {
                continue;
            }
            // Ours may speak of a node or a port that the table no longer has, or has not yet.
            ours = !is_stranger && is_of(&desired.cluster, &message.body);
            if !ours {
                is_stranger = true;
                self.strangers.heard(*place, endpoint, now);
            }
        }
        // Who leads knows what it serves.
        if ours && follows {
            for place in self.reader.places() {
                self.strangers.heard_ours(*place, now);
            }
        }
    }

    fn may_hear(&mut self, denied: Option<&'static str>) {
        if denied == self.denied {
            return;
        }
        self.denied = denied;
        let Some(subject) = denied else {
            info!("nats lets us listen to what others register");
            return;
        };
        warn!(
            subject,
            "nats denies listening, strangers on a host are not known"
        );
        if subject == wire::REGISTER {
            self.strangers.forget_all();
        }
    }

    fn claim(&mut self, desired: &Arc<Desired>, hold: bool, by_ear: bool) -> Arc<Desired> {
        self.watch(desired);
        self.contests.clear();
        if !self.strangers.contest() {
            return desired.clone();
        }
        self.contests = self.contests(desired, hold, by_ear);
        without_held(desired, &self.contests)
    }

    /// Looks after the hosts of the newest table and no others.
    fn watch(&mut self, desired: &Arc<Desired>) {
        let before = self.watched.replace(desired.clone());
        if before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, desired))
        {
            return;
        }
        let none = BTreeMap::new();
        let before = before.as_ref().map_or(&none, |before| &before.table.http);
        let strangers = &mut self.strangers;
        each_difference(before, &desired.table.http, |uri, wanted| {
            if wanted {
                strangers.watch(uri);
            } else {
                strangers.unwatch(uri);
            }
        });
        // Whoever calls looks at the hosts as they are now.
        strangers.take_changed();
    }

    fn contests(&self, desired: &Desired, hold: bool, by_ear: bool) -> BTreeMap<Uri, Contest> {
        let contest = |(uri, route): (&Uri, &HttpRoute)| {
            let mut endpoints = self.strangers.at(uri);
            // Some were heard before their node was known.
            endpoints.retain(|endpoint| {
                let address = endpoint.address();
                !address.is_some_and(|address| is_ours(desired, address))
            });
            if endpoints.is_empty() {
                return None;
            }
            let backends = route.backends.iter().map(ToString::to_string);
            let contest = Contest {
                service: route.service.key.clone(),
                endpoints,
                backends: backends.collect(),
                held: hold && !self.serves_host_of(uri, by_ear),
            };
            Some((uri.clone(), contest))
        };
        desired.table.http.iter().filter_map(contest).collect()
    }

    /// Whether that host is served by us already: whoever was there first stays. By ear it is what another instance
    /// was heard to serve.
    fn serves_host_of(&self, uri: &Uri, by_ear: bool) -> bool {
        if by_ear {
            return self.strangers.ours_serve(uri);
        }
        self.claimed.as_ref().is_some_and(|claimed| {
            let mut from = claimed.table.http.range(uri.whole_host()..);
            from.next().is_some_and(|(first, _)| first.same_host(uri))
        })
    }
}

/// Whether this is a node port of our own cluster.
fn is_ours(desired: &Desired, (ip, port): (IpAddr, u16)) -> bool {
    desired.node_ips.contains_key(&ip)
        && NodePort::new(port).is_some_and(|port| desired.node_ports.contains_key(&port))
}

fn without_held(desired: &Arc<Desired>, contests: &BTreeMap<Uri, Contest>) -> Arc<Desired> {
    let is_held = |uri: &Uri| contests.get(uri).is_some_and(|contest| contest.held);
    if !contests.values().any(|contest| contest.held) {
        return desired.clone();
    }
    let mut claimed = Desired::clone(desired);
    claimed.table.http.retain(|uri, _| !is_held(uri));
    Arc::new(claimed)
}

/// Each uri of only one of the tables, and whether it is the new one's.
fn each_difference(
    old: &BTreeMap<Uri, HttpRoute>,
    new: &BTreeMap<Uri, HttpRoute>,
    mut tell: impl FnMut(&Uri, bool),
) {
    let (mut old, mut new) = (old.keys().peekable(), new.keys().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.cmp(other),
        };
        let gone = old.next_if(|_| order != Ordering::Greater);
        let come = new.next_if(|_| order != Ordering::Less);
        match (gone, come) {
            (Some(gone), None) => tell(gone, false),
            (None, Some(come)) => tell(come, true),
            _ => {}
        }
    }
}

fn named(endpoints: &BTreeSet<Endpoint>) -> String {
    let names: Vec<String> = endpoints
        .iter()
        .take(NAMED_MAX)
        .map(ToString::to_string)
        .collect();
    let names = names.join(", ");
    match endpoints.len().saturating_sub(NAMED_MAX) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}
