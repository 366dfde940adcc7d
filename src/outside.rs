//! The ways out of this process, behind one trait.
//!
//! [`Outside`] opens them; what is said over each, and what its failures mean, is the affair of the part that asked.
//! The process runs with [`Network`]. Whoever runs the same parts against a world of their own, on a clock of their
//! own, hands in another one: nothing else here opens a socket or a file that routes depend on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::config::{HealthConfig, KubernetesConfig, NatsConfig, RoutingApiConfig, UaaConfig};
use crate::kubernetes::{self, Timing};
use crate::lifecycle::wall_clock;
use crate::publish::http::{Bus, BusError, NatsBus};
use crate::publish::tcp::{self, RoutingApi, TcpCounters};
use crate::publish::tls::TlsError;
use crate::state::{Disk, Folder};
use crate::static_routes::probe::{self, Probe};

/// Every remote, the disk, and the time of day.
pub trait Outside: Send + Sync {
    /// A client of the apiserver. That it is unreachable shows when it is asked something.
    fn apiserver(
        &self,
        config: &KubernetesConfig,
        timing: &Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>>;

    /// A client of the routing API that has tokens of UAA. Asks nobody anything yet.
    ///
    /// # Errors
    /// Where a file or URL cannot be used.
    fn routing_api(
        &self,
        config: &RoutingApiConfig,
        uaa: &UaaConfig,
        counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError>;

    /// A client of NATS, which connects by itself and never stops trying.
    ///
    /// # Errors
    /// Only for what no waiting can mend.
    fn nats<'a>(&'a self, config: &'a NatsConfig) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>>;

    /// Whoever can be asked for the health of a static route. Asks nobody anything yet.
    ///
    /// # Errors
    /// Where a file cannot be used.
    fn health(&self, config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError>;

    /// Where state is kept.
    fn disk(&self, folder: &Path) -> Arc<dyn Disk>;

    /// The time of day, since 1970. It jumps where somebody sets it, and goes on where the whole machine stands still.
    fn wall_clock(&self) -> Duration;
}

/// The real ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network;

// === impl Network ===

impl Outside for Network {
    fn apiserver(
        &self,
        config: &KubernetesConfig,
        timing: &Timing,
    ) -> BoxFuture<'static, Result<kubernetes::Client, kubernetes::ConnectError>> {
        let (config, timing) = (config.clone(), timing.clone());
        async move { kubernetes::connect_with(&config, &timing).await }.boxed()
    }

    fn routing_api(
        &self,
        config: &RoutingApiConfig,
        uaa: &UaaConfig,
        counters: &Arc<TcpCounters>,
    ) -> Result<Arc<dyn RoutingApi>, tcp::ConnectError> {
        Ok(Arc::new(tcp::Client::new(config, uaa, counters.clone())?))
    }

    fn nats<'a>(&'a self, config: &'a NatsConfig) -> BoxFuture<'a, Result<Box<dyn Bus>, BusError>> {
        let open = async {
            let bus = NatsBus::open(config).await?;
            Ok(Box::new(bus) as Box<dyn Bus>)
        };
        open.boxed()
    }

    fn health(&self, config: &HealthConfig) -> Result<Arc<dyn Probe>, TlsError> {
        probe::over_http(config)
    }

    fn disk(&self, folder: &Path) -> Arc<dyn Disk> {
        Arc::new(Folder(folder.to_owned()))
    }

    fn wall_clock(&self) -> Duration {
        wall_clock()
    }
}
