//! The lane's client of the routing API, over a link that fails.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use futures::{FutureExt as _, StreamExt as _};
use route_sync::plan::admission::RouterGroup;
use route_sync::plan::{InstanceId, Observed, TcpRow};
use route_sync::publish::tcp::{ApiError, EventBytes, RoutingApi};
use route_sync::uaa::UaaError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{EVENTS_MAX, Request, carry_out, unavailable};
use crate::Moment;
use crate::world::links::{Remote, Way};
use crate::world::{Event, Line, World, cluster};

/// The real client's limits.
const TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
/// As tokens are wont to live in a foundation that rotates its keys.
const TOKEN_LIFE: Duration = Duration::from_mins(10);
const TOKEN_RENEWED_BEFORE: Duration = Duration::from_mins(2);
/// The first and the longest wait after a token that was not to be had.
const TOKEN_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Measured: a few milliseconds a row.
const ROW_TAKES: Duration = Duration::from_millis(3);

pub struct Api {
    line: Line,
    token: Mutex<Token>,
}

#[derive(Default)]
struct Token {
    until: Option<Moment>,
    failures: u32,
    not_before: Moment,
}

// === impl Api ===

impl Api {
    pub fn new(line: Line) -> Self {
        Self {
            line,
            token: Mutex::default(),
        }
    }

    fn now(&self) -> Moment {
        self.line.world().now()
    }

    async fn token(&self) -> Result<(), ApiError> {
        let now = self.now();
        let kept = {
            let token = self.token.lock().expect("no one may panic holding it");
            if token.until.is_some_and(|until| now < until) {
                return Ok(());
            }
            token.not_before <= now
        };
        if !kept {
            return Err(ApiError::Token(unreachable_uaa()));
        }
        self.fetch().await.map_err(ApiError::Token)
    }

    async fn fetch(&self) -> Result<(), UaaError> {
        self.line.pause(Duration::from_millis(10)).await;
        let reached = timeout(TOKEN_TIMEOUT, self.line.reach(Remote::Uaa)).await;
        let now = self.now();
        let mut token = self.token.lock().expect("no one may panic holding it");
        if let Ok(Ok(())) = reached {
            *token = Token {
                until: Some(now + TOKEN_LIFE),
                ..Token::default()
            };
            return Ok(());
        }
        let wait = (TOKEN_BACKOFF.0 * 2_u32.pow(token.failures.min(6))).min(TOKEN_BACKOFF.1);
        token.failures += 1;
        token.not_before = now + wait;
        Err(unreachable_uaa())
    }

    /// One request: there, done, and back.
    async fn request<T>(
        &self,
        takes: Duration,
        mut done: impl FnMut(&mut World) -> Result<T, ApiError>,
        late: Option<Request>,
    ) -> Result<T, ApiError> {
        self.token().await?;
        let (until, slow) = self.line.world().routing.faults.slow;
        let takes = if self.now() < until { slow } else { takes };
        self.line.pause(takes).await;
        match timeout(TIMEOUT, self.line.reach(Remote::RoutingApi)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(unavailable("connection refused")),
            Err(_) => {
                // It lies in the server's socket, and is done once the server goes on.
                let mut world = self.line.world();
                if world.links.way(Remote::RoutingApi) == Way::Frozen
                    && let (Some(until), Some(late)) = (world.links.until(Remote::RoutingApi), late)
                {
                    let wait = until.saturating_sub(world.now());
                    world.after(wait, Event::Late(late));
                }
                return Err(unavailable("no answer"));
            }
        }
        let answer = {
            let mut world = self.line.world();
            if let Some(Request::Delete(_)) = late {
                cluster::judge_removal(&mut world, self.line.instance);
            }
            let answer = done(&mut world);
            if world.now() < world.routing.faults.answers_lost {
                world.note(format_args!("api's answer is lost"));
                Err(unavailable("connection reset"))
            } else {
                answer
            }
        };
        self.line.pause(Duration::from_millis(1)).await;
        answer
    }

    async fn write(&self, request: Request, rows: usize) -> Result<(), ApiError> {
        let takes = ROW_TAKES * u32::try_from(rows).unwrap_or(u32::MAX);
        let late = Some(request.clone());
        self.request(takes, |world| carry_out(world, &request), late)
            .await
    }
}

impl RoutingApi for Api {
    fn router_groups(&self) -> BoxFuture<'_, Result<Vec<RouterGroup>, ApiError>> {
        let groups = |world: &mut World| Ok(world.routing.groups.clone());
        self.request(ROW_TAKES, groups, None).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Observed, ApiError>> {
        let list = |world: &mut World| {
            let rows = world.routing.live(world.now());
            let rows: Observed = rows
                .map(|row| (row.row.clone(), row.stamp.clone()))
                .collect();
            let count = rows.len();
            world.note(format_args!("api lists {count}"));
            Ok(rows)
        };
        self.request(ROW_TAKES, list, None).boxed()
    }

    fn events(&self) -> BoxFuture<'_, Result<EventBytes, ApiError>> {
        let events = async {
            let open = |world: &mut World| {
                if world.now() < world.routing.faults.events_denied {
                    return Err(unavailable("no such thing"));
                }
                let (sender, receiver) = mpsc::channel(EVENTS_MAX);
                world.routing.streams.push(sender);
                world.note(format_args!("api tells events"));
                Ok(receiver)
            };
            let receiver = self.request(ROW_TAKES, open, None).await?;
            let chunks = stream::unfold((receiver, self.line.clone()), next_event);
            Ok(chunks.boxed())
        };
        events.boxed()
    }

    fn create<'a>(
        &'a self,
        rows: &'a [TcpRow],
        instance: &'a InstanceId,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let request = Request::Create {
            rows: rows.to_vec(),
            stamp: instance.as_str().to_owned(),
            ttl,
        };
        self.write(request, rows.len()).boxed()
    }

    fn delete<'a>(&'a self, rows: &'a [TcpRow]) -> BoxFuture<'a, Result<(), ApiError>> {
        self.write(Request::Delete(rows.to_vec()), rows.len())
            .boxed()
    }

    fn renew_token(&self) -> BoxFuture<'_, Result<(), UaaError>> {
        self.fetch().boxed()
    }

    fn renew_token_in(&self) -> Option<Duration> {
        let now = self.now();
        let token = self.token.lock().expect("no one may panic holding it");
        let due = token.until? - TOKEN_RENEWED_BEFORE;
        Some(due.max(token.not_before).saturating_sub(now))
    }

    fn missing_scopes(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

type Events = (mpsc::Receiver<(Moment, String)>, Line);

async fn next_event((mut receiver, line): Events) -> Option<(Result<Bytes, String>, Events)> {
    let (at, frame) = receiver.recv().await?;
    line.until(at).await;
    match line.reach(Remote::RoutingApi).await {
        Ok(()) => Some((Ok(Bytes::from(frame)), (receiver, line))),
        Err(_) => None,
    }
}

fn unreachable_uaa() -> UaaError {
    UaaError::Unreachable("connection refused".to_owned())
}
