//! What the apiserver answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::StreamBody;
use kube::client::Body;
use route_sync::kubernetes::{Client, Timing, client_over};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::service_fn;

use super::{Kind, Object, Version, json as wire, lease};
use crate::Moment;
use crate::world::Line;
use crate::world::links::{Refused, Remote, Way};

/// An answer on a good day.
const ANSWERS_IN: Duration = Duration::from_millis(3);
/// As often as the real one is wont to.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);
/// What names the cluster.
const CLUSTER_UID: &str = "cluster-1";

type Chunks = BoxStream<'static, Result<http_body::Frame<Bytes>, io::Error>>;
type Answer = Response<StreamBody<Chunks>>;

/// A client whose requests this world answers.
pub fn client(line: Line, timing: &Timing) -> Client {
    let carrier = service_fn(move |request: Request<Body>| {
        let line = line.clone();
        async move { answer(line, request).await }.boxed()
    });
    client_over(carrier, timing)
}

async fn answer(line: Line, request: Request<Body>) -> Result<Answer, io::Error> {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let refused = |_: Refused| io::Error::from(io::ErrorKind::ConnectionRefused);
    let (until, slow) = line.world().cluster.faults.slow;
    let now = line.world().now();
    line.pause(if now < until { slow } else { ANSWERS_IN })
        .await;
    line.reach(Remote::Kubernetes).await.map_err(refused)?;
    if lease::is_at(path) {
        let body = body.collect_bytes().await.map_err(io::Error::other)?;
        let answer = lease::answer(&mut line.world(), &head.method, path, &body);
        let lost = || io::Error::from(io::ErrorKind::ConnectionReset);
        return answer
            .map(|(code, value)| document(code, &value))
            .ok_or_else(lost);
    }
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .next()
    };
    let label = parameter("labelSelector");
    if parameter("watch") == Some("true") {
        let number = |name| parameter(name).and_then(|text| text.parse::<u64>().ok());
        let from = number("resourceVersion").unwrap_or(0);
        let seconds = number("timeoutSeconds").unwrap_or(60);
        return Ok(watch(line, path, label, from, seconds));
    }
    let (code, value) = read(&line, path, label);
    Ok(document(code, &value))
}

fn read(line: &Line, path: &str, label: Option<&str>) -> (u16, Value) {
    let mut world = line.world();
    let now = world.now();
    let faults = &world.cluster.faults;
    if now < faults.broken {
        return (500, wire::status(500, "InternalError"));
    }
    let nothing = now < faults.all_empty;
    if path == "/api/v1/namespaces/kube-system" {
        return (
            200,
            json!({"metadata": {"name": "kube-system", "uid": CLUSTER_UID}}),
        );
    }
    if path == "/apis/discovery.k8s.io/v1" {
        return (200, json!({"resources": [{"name": "endpointslices"}]}));
    }
    if now < faults.forbidden {
        return (403, wire::status(403, "Forbidden"));
    }
    if let Some(namespace) = path.strip_prefix("/api/v1/namespaces/")
        && !namespace.contains('/')
    {
        if nothing || world.cluster.gone.contains(&namespace) {
            return (404, wire::status(404, "NotFound"));
        }
        return (
            200,
            json!({"metadata": {"name": namespace, "uid": namespace}}),
        );
    }
    let Some((kind, one)) = wire::target(path) else {
        let slices = path == "/apis/discovery.k8s.io/v1/endpointslices";
        let version = world.cluster.version().max(1);
        return if slices {
            (200, wire::list(version, &[]))
        } else {
            (404, wire::status(404, "NotFound"))
        };
    };
    let cluster = &world.cluster;
    if let Some((namespace, name)) = one {
        if now < faults.get_forbidden {
            return (403, wire::status(403, "Forbidden"));
        }
        let mut found = cluster.objects.iter();
        let found = found.find(|((k, ns, n), _)| *k == kind && *ns == namespace && n == name);
        return match found.filter(|_| !nothing) {
            Some((key, (version, object))) => (200, wire::object(key, *version, object)),
            None => (404, wire::status(404, "NotFound")),
        };
    }
    let shown = !nothing && now >= faults.lists_empty;
    let all = cluster
        .objects
        .iter()
        .filter(|((k, ..), _)| *k == kind && shown);
    let lacks = |object: &Object| match object {
        Object::Service(service) => service.uid % 2 == 0 && now < faults.lists_lack,
        Object::Node(_) => false,
    };
    let all = all.filter(|(_, (_, object))| !lacks(object));
    let held = all.filter(|(_, (_, object))| wire::matches(object, label));
    let items: Vec<Value> = held
        .map(|(key, (version, object))| wire::object(key, *version, object))
        .collect();
    let list = wire::list(cluster.version().max(1), &items);
    let count = items.len();
    world.note(format_args!("apiserver lists {count} {kind:?} {label:?}"));
    (200, list)
}

fn document(code: u16, value: &Value) -> Answer {
    let bytes = Bytes::from(value.to_string());
    let chunks = stream::iter([Ok(http_body::Frame::data(bytes))]).boxed();
    response(code, chunks)
}

fn response(code: u16, chunks: Chunks) -> Answer {
    let mut response = Response::new(StreamBody::new(chunks));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status must be one");
    response
}

struct Watch {
    line: Line,
    kind: Option<Kind>,
    label: Option<String>,
    /// What was told last.
    at: usize,
    ends: Moment,
    bookmark: Moment,
    cuts: u64,
    changed: Arc<Notify>,
    over: bool,
}

enum Next {
    Says(Vec<u8>),
    Waits(Moment),
    Ends,
    Breaks,
}

fn watch(line: Line, path: &str, label: Option<&str>, from: u64, seconds: u64) -> Answer {
    let world = line.world();
    let (now, faults) = (world.now(), &world.cluster.faults);
    if now < faults.forbidden.max(faults.watch_forbidden) {
        return document(403, &wire::status(403, "Forbidden"));
    }
    if now < faults.broken {
        return document(500, &wire::status(500, "InternalError"));
    }
    let watch = Watch {
        kind: wire::target(path).map(|(kind, _)| kind),
        label: label.map(str::to_owned),
        at: usize::try_from(from).unwrap_or(0),
        ends: now + Duration::from_secs(seconds),
        bookmark: now + BOOKMARK_EVERY,
        cuts: world.cluster.cuts,
        changed: world.cluster.changed.clone(),
        over: false,
        line: line.clone(),
    };
    drop(world);
    let chunks = stream::unfold(watch, async |mut watch| {
        let chunk = watch.chunk().await?;
        Some((chunk.map(http_body::Frame::data), watch))
    });
    response(200, chunks.boxed())
}

// === impl Watch ===

impl Watch {
    async fn chunk(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if self.over {
                return None;
            }
            let changed = self.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            match self.next() {
                Next::Says(line) => return Some(Ok(Bytes::from(line))),
                Next::Ends => return None,
                Next::Breaks => {
                    self.over = true;
                    return Some(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Next::Waits(until) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = self.line.until(until) => {}
                },
            }
        }
    }

    fn next(&mut self) -> Next {
        let world = self.line.world();
        let (now, cluster) = (world.now(), &world.cluster);
        match world.links.way_of(self.line.instance, Remote::Kubernetes) {
            (Way::Frozen, until) => return Next::Waits(until + Duration::from_millis(1)),
            (Way::Down, _) => return Next::Breaks,
            (Way::Up, _) if self.cuts != cluster.cuts => return Next::Breaks,
            (Way::Up, _) => {}
        }
        if self.at < cluster.compacted {
            self.over = true;
            return Next::Says(wire::event("ERROR", &wire::status(410, "Expired")));
        }
        let lag = match cluster.faults.lag {
            (until, lag) if now < until => lag,
            _ => Duration::ZERO,
        };
        let lies = now < cluster.faults.all_empty;
        while let Some((made, told, version)) = cluster.history.get(self.at) {
            if lies || *made + lag > now {
                break;
            }
            self.at += 1;
            let line = self.line_of(self.at as u64, version);
            if let (true, Some(line)) = (*told, line) {
                return Next::Says(line);
            }
        }
        if now >= self.ends {
            return Next::Ends;
        }
        if now >= self.bookmark {
            self.bookmark = now + BOOKMARK_EVERY;
            return Next::Says(wire::bookmark(self.at.max(1)));
        }
        let late = cluster.history.get(self.at).map(|(made, ..)| *made + lag);
        let late = late.filter(|_| !lies).unwrap_or(Moment::MAX);
        Next::Waits(self.ends.min(self.bookmark).min(late))
    }

    fn line_of(&self, number: u64, version: &Version) -> Option<Vec<u8>> {
        let Version { key, before, after } = version;
        if Some(key.0) != self.kind {
            return None;
        }
        let label = self.label.as_deref();
        let before = before
            .as_ref()
            .filter(|(_, object)| wire::matches(object, label));
        let now = after.as_ref().filter(|object| wire::matches(object, label));
        match (before, now) {
            (None, Some(object)) => Some(("ADDED", object)),
            (Some(_), Some(object)) => Some(("MODIFIED", object)),
            (Some((_, object)), None) => Some(("DELETED", object)),
            (None, None) => None,
        }
        .map(|(word, object)| wire::event(word, &wire::object(key, number, object)))
    }
}
