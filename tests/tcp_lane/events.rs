//! The lane with the routing API's events: a door in front of the scripted foundation that tells of each write,
//! and fails in all the ways in which a stream can.

use std::convert::Infallible;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;

use super::*;

const EVENTS: &str = "/routing/v1/tcp_routes/events";
const BODY_MAX: usize = 1024 * 1024;

/// What becomes of a request for the stream.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// It stands.
    Stands,
    /// It stands, and nothing is ever told.
    Mute,
    /// It ends as soon as it stands.
    Cut,
    /// Another answer: a status and a body.
    Refused(u16, &'static str),
    /// A line without an end.
    Endless,
}

#[derive(Clone)]
struct Door {
    upstream: String,
    told: broadcast::Sender<String>,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    /// Deletes whatever is created, at once.
    spiteful: Arc<Mutex<Option<Foundation>>>,
}

/// A lane behind a door.
struct Listening {
    lane: Subject,
    door: Door,
    serve: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.serve.abort();
    }
}

/// Nothing but a stream calls for a look at the table.
fn patient() -> Pace {
    Pace {
        events_retry: Duration::from_millis(300),
        ..Pace::default()
    }
}

fn row_of(key: &foundation::Key, instance: Option<&str>) -> Value {
    json!({
        "router_group_guid": key.4, "port": key.0, "backend_ip": key.1, "backend_port": key.2,
        "backend_tls_port": key.3, "instance_id": instance, "ttl": 120, "isolation_segment": "",
        "modification_tag": {"guid": "x", "index": 0},
    })
}

impl Door {
    fn tell(&self, name: &str, row: &Value) {
        // Nobody may be listening.
        let _ = self
            .told
            .send(format!("id: 0\nevent: {name}\ndata: {row}\n\n"));
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
        if mood != Mood::Stands {
            // Whoever listens now is told nothing more.
            let _ = self.told.send(String::new());
        }
    }

    async fn answer(self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        if path == EVENTS {
            self.asked.fetch_add(1, Relaxed);
            let mood = *self.mood.lock().unwrap_or_else(PoisonError::into_inner);
            return self.events(mood);
        }
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, BODY_MAX).await.unwrap();
        let url = format!("{}{path}", self.upstream);
        let client = reqwest::Client::new();
        let sent = client.request(parts.method, url).headers(parts.headers);
        let answer = sent.body(body.clone()).send().await.unwrap();
        let status = answer.status();
        // As the real one: the event comes first, the answer a moment later.
        if status.is_success() {
            self.echo(&path, &body);
        }
        let mut response = Response::new(Body::from(answer.bytes().await.unwrap()));
        *response.status_mut() = status;
        response
    }

    fn echo(&self, path: &str, body: &Bytes) {
        let rows: Vec<Value> = serde_json::from_slice(body).unwrap_or_default();
        for row in rows {
            if path.ends_with("/delete") {
                self.tell("Delete", &row);
            } else if path.ends_with("/create") {
                self.tell("Upsert", &row);
                let spiteful = self.spiteful.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(api) = &*spiteful {
                    api.lock().rows.clear();
                    self.tell("Delete", &row);
                }
            }
        }
    }

    fn events(&self, mood: Mood) -> Response {
        let stream = |body| {
            Response::builder()
                .header("content-type", "text/event-stream; charset=utf-8")
                .body(body)
                .unwrap()
        };
        match mood {
            Mood::Refused(status, text) => Response::builder()
                .status(status)
                .body(Body::from(text))
                .unwrap(),
            Mood::Cut => stream(Body::empty()),
            Mood::Mute => stream(Body::from_stream(stream::pending::<
                Result<Bytes, Infallible>,
            >())),
            Mood::Endless => {
                let text = stream::repeat(Bytes::from_static(&[b'x'; 4096]));
                stream(Body::from_stream(text.map(Ok::<_, Infallible>)))
            }
            Mood::Stands => {
                let told = self.told.subscribe();
                let text = stream::unfold(told, |mut told| async {
                    let event = told.recv().await.ok().filter(|event| !event.is_empty())?;
                    Some((Ok::<_, Infallible>(event), told))
                });
                stream(Body::from_stream(text))
            }
        }
    }
}

impl Listening {
    async fn start(mood: Mood, pace: Pace, routes: &[(u16, u16)]) -> Self {
        let foundation = Running::start().await;
        let door = Door {
            upstream: foundation.server.uri(),
            told: broadcast::channel(1024).0,
            mood: Arc::new(Mutex::new(mood)),
            asked: Arc::default(),
            spiteful: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = door.clone();
        let router = Router::new().fallback(move |request| answers.clone().answer(request));
        let serve = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let first = Some(want(routes));
        let at_pace = |lane: TcpLane| lane.with_pace(pace);
        let lane = Subject::start_prepared(&url, foundation, 120, first, at_pace);
        Self { lane, door, serve }
    }

    /// Live, with the stream open, and everything read that opening it calls for.
    async fn settled(&self) {
        self.lane
            .until_report("live and followed", |report| {
                report.confirmed_once && report.facts["events"] == "followed"
            })
            .await;
        self.until("the list that follows", |lane| lists(lane) >= 2)
            .await;
    }

    async fn until(&self, what: &str, check: impl Fn(&Subject) -> bool) {
        self.lane.until(what, |_| check(&self.lane)).await;
    }

    /// Somebody else's deletion, with its event.
    fn delete(&self, key: &foundation::Key) {
        let row = self.lane.api().lock().rows.remove(key);
        let row = row_of(key, row.unwrap().instance.as_deref());
        self.door.tell("Delete", &row);
    }
}

fn lists(lane: &Subject) -> u64 {
    lane.counters.lists.load(Relaxed)
}

fn drift(lane: &Subject) -> u64 {
    lane.counters.drift.load(Relaxed)
}

#[tokio::test]
async fn a_row_that_somebody_deletes_returns_by_its_event_and_no_list_is_made() {
    let subject = Listening::start(Mood::Stands, patient(), &[(2000, 2), (2001, 1)]).await;
    subject.settled().await;
    let before = lists(&subject.lane);
    let heard = |lane: &Subject| lane.counters.events.load(Relaxed);
    let so_far = heard(&subject.lane);
    for round in 1..=3 {
        subject.delete(&key(2000, 1, -1));
        subject.lane.until("back", |api| api.rows.len() == 3).await;
        subject.until("counted", |lane| drift(lane) == round).await;
        // The row stands a moment before its event is told, and the next deletion must not be told in between.
        let both = so_far + 2 * round;
        subject.until("told", |lane| heard(lane) >= both).await;
    }
    assert_eq!(lists(&subject.lane), before);
}

#[tokio::test]
async fn our_own_writes_come_back_as_events_and_call_for_nothing() {
    let subject = Listening::start(Mood::Stands, patient(), &[(2000, 2)]).await;
    subject.settled().await;
    let before = lists(&subject.lane);
    let mut routes = vec![(2000, 2)];
    for port in 2001..2010 {
        routes.push((port, 2));
        subject.lane.want(&routes);
        subject
            .lane
            .until("open", |api| api.ports().contains(&port))
            .await;
    }
    subject.lane.until("all", |api| api.rows.len() == 20).await;
    subject
        .until("all was heard", |lane| {
            lane.counters.events.load(Relaxed) >= 18
        })
        .await;
    // Past the time in which an echo waits for its answer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let counters = &subject.lane.counters;
    assert_eq!((lists(&subject.lane), drift(&subject.lane)), (before, 0));
    assert_eq!(counters.rows_added.load(Relaxed), 20);
    assert_eq!(counters.streams.load(Relaxed), 1);
    assert_eq!(
        subject
            .lane
            .api()
            .lock()
            .creates()
            .map(|call| call.ports.len())
            .sum::<usize>(),
        20
    );
}

#[tokio::test]
async fn a_stranger_on_our_port_is_named_as_soon_as_he_comes_and_let_go_when_he_goes() {
    let subject = Listening::start(Mood::Stands, patient(), &[(2000, 1)]).await;
    subject.settled().await;
    let before = lists(&subject.lane);
    let stranger = (2000, "192.0.2.7".to_owned(), 80, -1, "g".to_owned());
    let life = Duration::from_mins(10);
    subject
        .lane
        .api()
        .lock()
        .insert(stranger.clone(), Some("other"), life);
    subject
        .door
        .tell("Upsert", &row_of(&stranger, Some("other")));
    let report = subject
        .lane
        .until_report("named", |report| has(report, "foreign-joined"))
        .await;
    assert!(message(&report, "foreign-joined").contains("192.0.2.7:80"));
    assert_eq!(lists(&subject.lane), before, "the event said it all");
    subject.delete(&stranger);
    subject
        .lane
        .until_report("gone", |report| !has(report, "foreign-joined"))
        .await;
    // It is told as soon as the event says it, and looked after then.
    subject
        .until("one list", |lane| lists(lane) == before + 1)
        .await;
    assert_eq!(subject.lane.api().lock().ports(), BTreeSet::from([2000]));
}

#[tokio::test]
async fn who_deletes_our_row_each_time_is_not_fought_for_ever() {
    let subject = Listening::start(Mood::Stands, patient(), &[(2000, 1), (2001, 1)]).await;
    subject.settled().await;
    let before = subject.lane.api().lock().creates().count();
    let api = subject.lane.api().clone();
    *subject.door.spiteful.lock().unwrap() = Some(api);
    subject.delete(&key(2000, 1, -1));
    let report = subject
        .lane
        .until_report("told", |report| has(report, "route-contested"))
        .await;
    assert_eq!(report.routes["2000"].state, RouteState::Held);
    assert!(message(&report, "route-contested").contains("10.0.0.1:32000"));
    let after = subject.lane.api().lock().creates().count();
    assert_eq!(after - before, 5, "rounds");
}

#[tokio::test]
async fn what_happened_while_the_stream_was_cut_is_found_by_the_list_that_follows() {
    let subject = Listening::start(Mood::Stands, patient(), &[(2000, 1)]).await;
    subject.settled().await;
    for streams in 2..4 {
        subject.lane.api().lock().rows.clear();
        // Ended, and granted again.
        subject.door.is(Mood::Cut);
        subject.door.is(Mood::Stands);
        subject.lane.until("back", |api| api.rows.len() == 1).await;
        subject
            .until("the stream stands", |lane| {
                lane.counters.streams.load(Relaxed) >= streams
            })
            .await;
    }
    assert_eq!(drift(&subject.lane), 2);
}

#[tokio::test]
async fn a_stream_that_cannot_be_had_is_told_and_the_list_goes_on_alone() {
    let moods = [
        Mood::Refused(403, "<html>"),
        Mood::Refused(404, "404 page not found"),
        Mood::Refused(200, "<html>welcome"),
        Mood::Cut,
        Mood::Endless,
    ];
    let lived = moods.map(|mood| async move {
        let pace = Pace {
            events_patience: Duration::from_secs(1),
            list_every: Duration::from_secs(1),
            events_retry: Duration::from_millis(300),
            ..Pace::default()
        };
        let subject = Listening::start(mood, pace, &[(2000, 1)]).await;
        let report = subject
            .lane
            .until_report("told", |report| has(report, "events-unavailable"))
            .await;
        assert!(report.facts["events"].starts_with("degraded: "));
        assert_eq!(report.routes["2000"].state, RouteState::Live);
        assert!(!has(&report, "lane-down"));
        subject.lane.api().lock().rows.clear();
        subject.lane.until("back", |api| api.rows.len() == 1).await;
        let asked = subject.door.asked.load(Relaxed);
        assert!(asked < 100, "asked {asked} times");
        subject.door.is(Mood::Stands);
        subject
            .lane
            .until_report("well", |report| !has(report, "events-unavailable"))
            .await;
    });
    futures::future::join_all(lived).await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_while_rows_live_is_opened_anew() {
    let pace = Pace {
        events_silence: Duration::from_millis(500),
        ..patient()
    };
    let subject = Listening::start(Mood::Mute, pace, &[(2000, 1)]).await;
    subject
        .until("opened twice", |lane| {
            lane.counters.streams.load(Relaxed) >= 2
        })
        .await;
    let report = subject
        .lane
        .until_report("said", |report| {
            let silent = report.facts["events"].starts_with("degraded: nothing was heard");
            let live = report.routes.get("2000");
            silent && live.is_some_and(|it| it.state == RouteState::Live)
        })
        .await;
    assert!(report.findings.is_empty(), "{report:#?}");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_the_stream() {
    let mut subject = Listening::start(Mood::Stands, patient(), &[(2000, 1)]).await;
    subject.settled().await;
    subject.lane.stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), &mut subject.lane.task)
        .await
        .expect("must end")
        .unwrap();
}
