//! A labelled Service of our own: how long until the routers lead to it, and until they no longer do?
//!
//! It owns the objects of one test and their names. Time runs from the moment the apiserver has taken the Service, so
//! that what kube-proxy and the routers take is counted as well: it is what whoever labels a Service waits for.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::OptionFuture;
use futures::stream::FuturesUnordered;
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::echo::Echo;
use super::probe::{HttpProbe, Seen, TcpProbe};
use super::record::Span;
use super::{Arguments, ClusterTarget, Outcome, Record, Stop, Targets, TcpTarget, Trouble};
use crate::admin::json::Report;
use crate::causes::chain;
use crate::cli::ask;
use crate::kubernetes::trial::Site;
use crate::kubernetes::{self, ApiError};
use crate::route::RouterPort;

/// Begins the name of everything that a test makes.
const NAME: &str = "route-sync-smoke-test";
/// What is older was left by a test that ended before its time: none takes longer.
const LEFTOVER_AGE: Duration = Duration::from_hours(1);
/// For removing it; what remains is the next test's.
const LEFTOVERS_MAX: Duration = Duration::from_secs(30);
/// Between two looks through a router.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks at a time: as many as begin while one takes as long as it may.
const LOOKS_MAX: usize = 50;
/// All of the cleaning up: with the request before it within the 15 s that BPM gives after SIGTERM.
const CLEANUP_MAX: Duration = Duration::from_secs(8);
/// Between two attempts at it.
const CLEANUP_PAUSE: Duration = Duration::from_secs(1);
/// Where a route does not go.
const STILL_ROUTED: &str =
    "does route-sync run, and does it hold removals? `route-sync status` tells";
/// The running route-sync answers from memory.
const FINDINGS_WAIT: Duration = Duration::from_secs(2);

/// One test.
pub(super) struct EndToEnd<'a> {
    targets: &'a Targets,
    cluster: &'a ClusterTarget,
    site: Site,
    labels: BTreeMap<&'static str, String>,
    echo: Echo,
    endpoint: SocketAddr,
    http: Option<HttpProbe>,
    tcp: Option<(TcpProbe, &'a TcpTarget, RouterPort)>,
}

/// What became of a route, and how long that took.
type Timed = (Duration, Result<(), Trouble>);

// === impl EndToEnd ===

impl<'a> EndToEnd<'a> {
    /// Removes what earlier tests left, and listens; nothing is made yet.
    pub(super) async fn prepare(
        targets: &'a Targets,
        arguments: &Arguments,
        record: &mut Record,
    ) -> Option<Self> {
        let cluster = targets.cluster.as_ref()?;
        tell_leftovers(cluster, record).await;
        let began = Instant::now();
        let echo = listen(cluster, arguments.address).await;
        let told = match &echo {
            Ok((_, endpoint)) => Ok(format!("listens on `{endpoint}`")),
            Err(trouble) => Err(trouble.clone()),
        };
        record.tell("listener", began.elapsed(), told);
        let (echo, endpoint) = echo.ok()?;
        let name = format!("{NAME}-{:08x}", fastrand::u32(..));
        let site = Site {
            own_namespace: arguments.namespace.is_none(),
            namespace: arguments.namespace.clone().unwrap_or_else(|| name.clone()),
            name: name.clone(),
        };
        let mut labels = BTreeMap::new();
        let mut http = None;
        if targets.nats.is_some() {
            let host = format!("{name}.{}", cluster.app_domain);
            match HttpProbe::new(arguments.http_router.as_deref(), &host, echo.word()) {
                Ok(probe) => http = Some(probe),
                Err(error) => {
                    let trouble = Trouble::new(chain(&error));
                    record.tell("http-route", Duration::ZERO, Err(trouble));
                    return None;
                }
            }
            labels.insert("http-route-sync", name);
        }
        let wanted = arguments.tcp_port.zip(arguments.tcp_router.as_ref());
        let tcp = wanted
            .zip(targets.tcp.as_ref())
            .map(|((port, router), target)| {
                labels.insert("tcp-route-sync", port.to_string());
                let word = echo.word().to_owned();
                let address = joined(router, port);
                (TcpProbe { address, word }, target, port)
            });
        Some(Self {
            targets,
            cluster,
            site,
            labels,
            echo,
            endpoint,
            http,
            tcp,
        })
    }

    /// Makes everything, looks, deletes the Service, and looks again.
    pub(super) async fn run(&self, record: &mut Record, stop: &Stop) {
        tokio::select! {
            never = self.echo.serve() => match never {},
            () = self.steps(record, stop) => {}
        }
    }

    /// Takes away whatever was made. Done again while it fails, as nothing comes of doing it twice.
    pub(super) async fn clean_up(&self) -> Outcome {
        let mut last = None;
        let clean_up = async {
            while let Err(error) = self.cluster.trial.delete_all(&self.site).await {
                last = Some(chain(&error));
                sleep(CLEANUP_PAUSE).await;
            }
        };
        if timeout(CLEANUP_MAX, clean_up).await.is_ok() {
            return Ok("everything that the test made is deleted".to_owned());
        }
        let last = last.unwrap_or_else(|| "no answer of the apiserver".to_owned());
        Err(Trouble::new(format!("cannot delete everything: {last}")).hint(self.left_behind()))
    }

    /// How to take away by hand what the test made.
    pub(super) fn left_behind(&self) -> String {
        let Site {
            namespace,
            own_namespace,
            name,
        } = &self.site;
        if *own_namespace {
            format!("`kubectl delete namespace {namespace}` takes away what is left")
        } else {
            format!(
                "`kubectl delete --namespace {namespace} service,endpointslice {name}` takes away what is left"
            )
        }
    }

    async fn steps(&self, record: &mut Record, stop: &Stop) {
        if !record.step("namespace", self.make_namespace(stop)).await
            || !record.step("service", self.make_service(stop)).await
        {
            return;
        }
        let http = self
            .http
            .as_ref()
            .map(|probe| timed(routed_http(probe, stop)));
        let tcp = self.tcp.as_ref();
        let tcp = tcp.map(|(probe, ..)| timed(routed_tcp(probe, stop)));
        // Both at once, as one must not be charged for the other.
        let (http, tcp) = tokio::join!(OptionFuture::from(http), OptionFuture::from(tcp));
        for (step, lane, timed) in [("http-route", "http", http), ("tcp-route", "tcp", tcp)] {
            let outcome = match timed {
                None => continue,
                Some((took, Ok(()))) => {
                    record.time(Span::ToRoute, lane, took);
                    (took, Ok("the router leads to the Service".to_owned()))
                }
                Some((took, Err(trouble))) => (took, Err(self.with_findings(trouble, stop).await)),
            };
            record.tell(step, outcome.0, outcome.1);
        }
        if !record.passed() || !record.step("delete", self.delete_service(stop)).await {
            return;
        }
        let http = self
            .http
            .as_ref()
            .map(|probe| timed(unrouted_http(probe, stop)));
        let tcp = self.tcp.as_ref();
        let tcp = tcp.map(|(probe, target, port)| timed(unrouted_tcp(probe, target, *port, stop)));
        let (http, tcp) = tokio::join!(OptionFuture::from(http), OptionFuture::from(tcp));
        for (step, lane, timed) in [("http-unroute", "http", http), ("tcp-unroute", "tcp", tcp)] {
            let Some((took, outcome)) = timed else {
                continue;
            };
            if outcome.is_ok() {
                record.time(Span::ToUnroute, lane, took);
            }
            record.tell(
                step,
                took,
                outcome.map(|()| "the router leads nowhere".to_owned()),
            );
        }
    }

    async fn make_namespace(&self, stop: &Stop) -> Outcome {
        stop.check()?;
        let namespace = &self.site.namespace;
        let made = self.cluster.trial.make_namespace(&self.site).await;
        made.map_err(|error| refused("make the namespace", &error))?;
        let word = if self.site.own_namespace {
            "made"
        } else {
            "taken as it is"
        };
        Ok(format!("`{namespace}` {word}"))
    }

    async fn make_service(&self, stop: &Stop) -> Outcome {
        stop.check()?;
        let (trial, site) = (&self.cluster.trial, &self.site);
        let made = trial.make_endpoint(site, self.endpoint).await;
        made.map_err(|error| {
            let trouble = refused("say what the Service leads to", &error);
            match error {
                ApiError::NotFound => trouble.hint("`--namespace` must name one that is there"),
                ApiError::Status { code: 422, .. } => trouble.hint(
                    "`--address` must be an address that the nodes reach; a loopback address is none",
                ),
                _ => trouble,
            }
        })?;
        stop.check()?;
        let made = trial.make_service(site, self.endpoint, &self.labels).await;
        made.map_err(|error| refused("make the Service", &error))?;
        let labels = self
            .labels
            .iter()
            .map(|(label, value)| format!("`{label}: {value}`"));
        let labels: Vec<_> = labels.collect();
        Ok(format!(
            "`{}/{}` made with {}",
            site.namespace,
            site.name,
            labels.join(" and ")
        ))
    }

    async fn delete_service(&self, stop: &Stop) -> Outcome {
        stop.check()?;
        let deleted = self.cluster.trial.delete_service(&self.site).await;
        deleted.map_err(|error| refused("delete the Service", &error))?;
        Ok("the Service is deleted".to_owned())
    }

    /// What the running route-sync says of the Service, where it can be asked, is a better hint than any.
    async fn with_findings(&self, trouble: Trouble, stop: &Stop) -> Trouble {
        let address = match self.targets.admin {
            Some(address) if !stop.asked.is_cancelled() => address,
            _ => return trouble,
        };
        let page = timeout(FINDINGS_WAIT, ask::page(address, "status.json")).await;
        let report = page.ok().and_then(Result::ok);
        let report = report.and_then(|text| serde_json::from_str::<Report>(&text).ok());
        let subject = format!("{}/{}", self.site.namespace, self.site.name);
        let findings = report.into_iter().flat_map(|report| report.findings);
        let told: Vec<_> = findings
            .filter(|finding| finding.subject == subject)
            .map(|finding| format!("[{}] {}", finding.code, finding.message))
            .collect();
        if told.is_empty() {
            return trouble;
        }
        trouble.hint(format!(
            "route-sync says of the Service: {}",
            told.join("; ")
        ))
    }
}

/// Removes what earlier tests left. Nothing depends on it.
async fn tell_leftovers(cluster: &ClusterTarget, record: &mut Record) {
    match timeout(LEFTOVERS_MAX, removed(cluster)).await {
        Err(_) => record.skip(
            "leftovers",
            Trouble::new("the apiserver is too slow for that now"),
        ),
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => {
            let told = format!("removed {count} that earlier tests left");
            record.tell("leftovers", Duration::ZERO, Ok(told));
        }
        Ok(Err(error)) => record.skip("leftovers", Trouble::new(chain(&error))),
    }
}

/// Removes what tests left that ended before their time; how many places there were.
async fn removed(cluster: &ClusterTarget) -> Result<usize, ApiError> {
    let leftovers = cluster.trial.leftovers(LEFTOVER_AGE).await?;
    for site in &leftovers {
        cluster.trial.delete_all(site).await?;
    }
    Ok(leftovers.len())
}

async fn listen(
    cluster: &ClusterTarget,
    address: Option<(IpAddr, u16)>,
) -> Result<(Echo, SocketAddr), Trouble> {
    let (ip, port) = match address {
        Some(address) => address,
        None => (own_address(cluster).await?, 0),
    };
    let hint = "`--address` must be an address of this machine";
    let cannot = |error: std::io::Error| {
        Trouble::new(format!("cannot listen on `{ip}`, port {port}: {error}")).hint(hint)
    };
    let echo = Echo::listen(ip, port).await.map_err(cannot)?;
    let endpoint = echo.address().map_err(cannot)?;
    Ok((echo, endpoint))
}

/// The address from which this machine reaches the apiserver: the nodes are not far from it. Nothing is sent.
async fn own_address(cluster: &ClusterTarget) -> Result<IpAddr, Trouble> {
    let unknown = |reason: String| {
        Trouble::new(format!("no address of this machine is known: {reason}"))
            .hint("give `--address`")
    };
    let url = kubernetes::server_url(&cluster.config).await;
    let url = url.map_err(|error| unknown(chain(&error)))?;
    let url: reqwest::Url = url
        .parse()
        .map_err(|_| unknown(format!("`{url}` is no URL")))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or_default();
    let towards = async {
        let found = tokio::net::lookup_host((host, port)).await?.next();
        let remote = found.ok_or(std::io::ErrorKind::NotFound)?;
        let any: IpAddr = match remote.ip() {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(remote).await?;
        Ok(socket.local_addr()?.ip())
    };
    towards
        .await
        .map_err(|error: std::io::Error| unknown(error.to_string()))
}

async fn timed(looking: impl Future<Output = Result<(), Trouble>>) -> Timed {
    let began = Instant::now();
    let outcome = looking.await;
    (began.elapsed(), outcome)
}

async fn routed_http(probe: &HttpProbe, stop: &Stop) -> Result<(), Trouble> {
    let ours = async |seen: &Seen| *seen == Seen::Ours;
    let last = until(stop, async || probe.look().await, ours).await;
    last.map_err(|(told, last)| {
        told.hint(match last {
            Some(Seen::NoRoute(_)) => {
                "does route-sync run? `route-sync status` tells what it knows of the Service"
            }
            Some(Seen::Unserved(_)) => {
                "gorouter knows the host but reaches nothing behind it: are the node ports open to it, and is \
                 `--address` to the nodes?"
            }
            _ => "does gorouter listen there? `--http-router` tells where",
        })
    })
}

async fn routed_tcp(probe: &TcpProbe, stop: &Stop) -> Result<(), Trouble> {
    let ours = async |seen: &Seen| *seen == Seen::Ours;
    let last = until(stop, async || probe.look().await, ours).await;
    last.map_err(|(told, last)| {
        told.hint(match last {
            Some(Seen::NoRoute(_)) => {
                "does route-sync run? `route-sync status` tells what it knows of the Service"
            }
            Some(Seen::Closed) => {
                "does route-sync run, are the node ports open to the tcp-router, and is `--address` to the nodes?"
            }
            _ => "do the tcp-routers listen there? `--tcp-router` tells where",
        })
    })
}

async fn unrouted_http(probe: &HttpProbe, stop: &Stop) -> Result<(), Trouble> {
    let gone = async |seen: &Seen| matches!(seen, Seen::NoRoute(_));
    let last = until(stop, async || probe.look().await, gone).await;
    last.map_err(|(told, _)| told.hint(STILL_ROUTED))
}

/// A connection that is taken and closed may be a load balancer's, or that of a router whose backends are away while
/// the route stands: the routing API's table decides then.
async fn unrouted_tcp(
    probe: &TcpProbe,
    target: &TcpTarget,
    port: RouterPort,
    stop: &Stop,
) -> Result<(), Trouble> {
    let gone = async |seen: &Seen| match seen {
        Seen::NoRoute(_) => true,
        Seen::Closed => {
            let rows = target.api.list().await;
            rows.is_ok_and(|rows| rows.keys().all(|row| row.port != port))
        }
        _ => false,
    };
    let last = until(stop, async || probe.look().await, gone).await;
    last.map_err(|(told, _)| told.hint(STILL_ROUTED))
}

/// Looks again and again; where it never comes about, what was seen last. One look does not wait for the one before:
/// HAProxy holds a connection for 3 s to a backend that refuses (measured), while the port may close any moment.
async fn until(
    stop: &Stop,
    look: impl AsyncFn() -> Seen,
    done: impl AsyncFn(&Seen) -> bool,
) -> Result<(), (Trouble, Option<Seen>)> {
    let mut last = None;
    let looking = async {
        let mut looks = FuturesUnordered::new();
        let mut next = interval(PAUSE);
        next.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(seen) = looks.next(), if !looks.is_empty() => {
                    if done(&seen).await {
                        return;
                    }
                    last = Some(seen);
                }
                _ = next.tick(), if looks.len() < LOOKS_MAX => looks.push(look()),
            }
        }
    };
    let ended = tokio::select! {
        biased;
        () = looking => return Ok(()),
        ended = stop.ended() => ended,
    };
    let told = match &last {
        Some(seen) => format!("{ended}: {seen}"),
        None => ended,
    };
    Err((Trouble::new(told), last))
}

fn refused(what: &str, error: &ApiError) -> Trouble {
    Trouble::new(format!("cannot {what}: {}", chain(error)))
}

/// An address of IPv6 stands in brackets before its port.
fn joined(host: &str, port: RouterPort) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}
