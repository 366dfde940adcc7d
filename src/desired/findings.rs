//! Everything that can be wrong or odd, under a code that never changes its meaning.
//!
//! The same code stands in logs, `/status.json`, the metric label, `plan`, `lint` and the documentation.

use std::fmt;

use crate::route::{Lane, ServiceKey};

/// Something an operator or the owner of a Service should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What kind it is.
    pub code: Code,
    /// What it is about.
    pub subject: Subject,
    /// What is wrong: lower-case, no full stop, literals in backticks.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// One Service, or one static route.
    Service(ServiceKey),
    /// One Node, by name.
    Node(String),
    /// A Kubernetes resource as a whole, such as `endpointslices`.
    Source(&'static str),
    /// All routes of a lane.
    Lane(Lane),
    /// The cluster as a whole.
    Cluster,
    /// The configuration file.
    Configuration,
}

/// Whether something is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A route that was asked for does not live.
    Error,
    /// Everything lives, but not as it should.
    Warning,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal $severity:ident,)*) => {
        /// The stable name of a kind of finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[doc = $doc])+ $name,)* }

        impl Code {
            /// Every code there is, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it is written everywhere.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it means, as the documentation says it.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)* }
            }

            /// Whether a route is lost by it.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

codes! {
    /// The label or annotation names no port number.
    PortNotANumber = "port-not-a-number" Error,
    /// The number is no port a router may open: below 1024 or above 65535.
    PortOutOfRange = "port-out-of-range" Error,
    /// A component on the tcp-router's machine listens there.
    PortReserved = "port-reserved" Error,
    /// The router group does not reserve the port.
    PortNotReservable = "port-not-reservable" Error,
    /// The port lives, but its router group no longer reserves it.
    PortNoLongerReservable = "port-no-longer-reservable" Warning,
    /// `policy.ports` grants the port to other namespaces.
    PortDenied = "port-denied" Error,
    /// Another Service holds the port.
    PortConflict = "port-conflict" Error,
    /// The host is no DNS name.
    HostInvalid = "host-invalid" Error,
    /// The host belongs to the platform, or `policy.hosts` grants it to other namespaces.
    HostDenied = "host-denied" Error,
    /// Another Service, or another namespace, holds the host.
    HostConflict = "host-conflict" Error,
    /// Two Services claimed one name before this process knew who held it.
    WinnerUndetermined = "winner-undetermined" Warning,
    /// The Service hands its names over to one that is not there or carries no label of ours.
    HandOverUnknown = "hand-over-unknown" Warning,
    /// The Service hands a name over to one that does not ask for it.
    HandOverUnclaimed = "hand-over-unclaimed" Warning,
    /// The Service hands a name over to one that may not have it.
    HandOverDenied = "hand-over-denied" Warning,
    /// Services hand a name over in a circle; its holder keeps it.
    HandOverCycle = "hand-over-cycle" Warning,
    /// The Service keeps a name until a pod of the one it hands it over to is ready.
    HandOverWaits = "hand-over-waits" Warning,
    /// The Service opens no node port.
    NoNodePort = "no-node-port" Error,
    /// The port carries UDP or SCTP, which no router takes.
    ProtocolUnsupported = "protocol-unsupported" Error,
    /// Several ports and no word which one: the first was taken.
    PortAmbiguous = "port-ambiguous" Warning,
    /// The annotation names a port the Service does not have.
    PortUnknown = "port-unknown" Error,
    /// An annotation's value cannot be read.
    AnnotationInvalid = "annotation-invalid" Error,
    /// An annotation without the label that opts its Service in.
    AnnotationWithoutLabel = "annotation-without-label" Error,
    /// An annotation nobody knows under our prefix.
    AnnotationUnknown = "annotation-unknown" Warning,
    /// gorouter would send requests to dead nodes first.
    LoadbalancingRisky = "loadbalancing-risky" Warning,
    /// A TLS backend needs `state.dir`, so that its withdrawal survives a restart.
    TlsNeedsState = "tls-needs-state" Error,
    /// `state.dir` cannot be written, so TLS backends that are not on record there are not announced.
    StateUnwritable = "state-unwritable" Error,
    /// The state file in `state.dir` cannot be read or written, so a restart waits for Kubernetes.
    StateNotKept = "state-not-kept" Warning,
    /// No node can serve the route.
    NoBackend = "no-backend" Error,
    /// No pod of the Service is ready.
    NoReadyEndpoint = "no-ready-endpoint" Error,
    /// Where the pods are cannot be seen, so every node is taken.
    EndpointsUnknown = "endpoints-unknown" Warning,
    /// A Node without an address of the wanted family.
    NodeWithoutAddress = "node-without-address" Warning,
    /// So many nodes are not ready at once, or missing from a list, that the last good set is kept.
    NodesNotReadyHeld = "nodes-not-ready-held" Warning,
    /// So many routes would go at once that they are kept until somebody approves, or two further lists agree.
    RemovalHeld = "removal-held" Warning,
    /// An operator drained this process: every route was withdrawn, until it is restarted.
    Drained = "drained" Error,
    /// An operator drained this process: routes are kept alive as they were, until it is restarted.
    DrainedKept = "drained-kept" Warning,
    /// The apiserver answers as another cluster: routes stay as they were until somebody approves.
    AnotherCluster = "another-cluster" Error,
    /// One object could not be read; what was last known of it stays.
    ObjectUndecodable = "object-undecodable" Warning,
    /// The apiserver refuses a right; the message names it.
    RightMissing = "right-missing" Warning,
    /// The Lease cannot be read or renewed.
    LeaseUnavailable = "lease-unavailable" Warning,
    /// Another instance acts although the Lease is ours.
    SplitBrain = "split-brain" Warning,
    /// NATS denies the subject on which instances tell each other who leads.
    InstancesUnheard = "instances-unheard" Warning,
    /// A source has not been heard of for too long.
    SourceStale = "source-stale" Warning,
    /// Not all of the configuration file is in use; the message says what, and why.
    ConfigStale = "config-stale" Warning,
    /// The UAA client lacks a scope; the message names it.
    ScopeMissing = "scope-missing" Warning,
    /// The configured router group does not exist, or several could be meant.
    RouterGroupUnknown = "router-group-unknown" Error,
    /// Somebody else already serves the port.
    ForeignBackend = "foreign-backend" Error,
    /// Somebody else joined a port of ours.
    ForeignJoined = "foreign-joined" Warning,
    /// Somebody deletes the route's rows as often as they are restored; they are left alone for a while.
    RouteContested = "route-contested" Error,
    /// Strangers already serve the host, so it is not claimed.
    HostForeign = "host-foreign" Error,
    /// The health of a static route failed three times in a row; its backends are withdrawn.
    HealthFailed = "health-failed" Error,
    /// The health of a static route is answered by 401 or 403, which counts as up and proves little.
    HealthUnproven = "health-unproven" Warning,
    /// Strangers serve a host of ours, too.
    HostForeignJoined = "host-foreign-joined" Warning,
    /// Rows of an older route-sync stand in the way until they are gone.
    LegacyRows = "legacy-rows" Warning,
    /// The Service's TCP route changes too often; its last state is held.
    Flapping = "flapping" Warning,
    /// The routing API refuses this route; the others are not harmed.
    RouteRefused = "route-refused" Error,
    /// The routing API's events cannot be had; what others do to TCP rows is seen by the periodic list only.
    EventsUnavailable = "events-unavailable" Warning,
    /// The routing API, UAA or NATS cannot be reached or refuses us.
    LaneDown = "lane-down" Warning,
}

impl Finding {
    /// A finding on a Service.
    pub fn on_service(code: Code, service: &ServiceKey, message: impl Into<String>) -> Self {
        Self::new(code, Subject::Service(service.clone()), message)
    }

    /// A finding without a hint.
    pub fn new(code: Code, subject: Subject, message: impl Into<String>) -> Self {
        Self {
            code,
            subject,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Severity {
    /// As it is written everywhere.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) if key.is_static_route() => write!(f, "static route {key}"),
            Self::Service(key) => write!(f, "service {key}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Source(resource) => write!(f, "resource {resource}"),
            Self::Lane(lane) => write!(f, "lane {lane}"),
            Self::Cluster => f.write_str("cluster"),
            Self::Configuration => f.write_str("configuration"),
        }
    }
}

/// One line; the hint, if any, follows on the same line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] {}", self.subject, self.code, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; hint: {hint}"),
            None => Ok(()),
        }
    }
}
