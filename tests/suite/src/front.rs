//! One more HTTP router for a scenario of its own: on another NATS, or with shorter times than everybody's.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use counterparts::{Gorouter, GorouterOptions, NatsServer, Pki, Program};
use sandbox::http_router::{HttpRouter, HttpRouterOptions, NatsClientOptions, NatsClientTls};
use sandbox::tls::Identity;
use serde_json::Value;

use crate::foundation::{Foundation, Stage};
use crate::probe;

/// How long it waits after its start before it serves, and how long it keeps what is not refreshed.
#[derive(Clone, Copy, Debug)]
pub struct FrontTimes {
    /// Also the interval that it tells.
    pub start_delay: Duration,
    /// A plain endpoint that was not heard of for so long goes.
    pub stale_threshold: Duration,
}

impl FrontTimes {
    /// Keeps what nobody repeats for longer than a stop and a start, a takeover, or the first start of all, which
    /// waits for its Lease (15 s); as Cloud Foundry's do with their 120 s.
    pub const PATIENT: Self = Self {
        start_delay: Duration::from_secs(5),
        stale_threshold: Duration::from_secs(40),
    };
}

/// A gorouter, or the sandbox's, as the stage has it.
pub enum HttpFront {
    /// The sandbox's.
    Boxed(Box<HttpRouter>),
    /// The real one.
    Real(Box<Gorouter>),
}

// === impl HttpFront ===

impl HttpFront {
    /// Starts one more on this NATS.
    pub async fn start(
        foundation: &Foundation,
        nats: &NatsServer,
        times: FrontTimes,
    ) -> Result<Self> {
        let FrontTimes {
            start_delay,
            stale_threshold,
        } = times;
        let prune = (stale_threshold / 5).max(Duration::from_secs(1));
        let stack = &foundation.stack;
        if foundation.stage == Stage::Real {
            let options = GorouterOptions {
                start_response_delay: start_delay,
                droplet_stale_threshold: stale_threshold,
                prune_stale_droplets_interval: prune,
                ..GorouterOptions::quick()
            };
            let gorouter = Gorouter::start(&stack.run, &stack.pki, nats, options).await?;
            return Ok(Self::Real(Box::new(gorouter)));
        }
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut options = HttpRouterOptions::new(anywhere, bus(nats, &stack.pki));
        options.start_response_delay_secs = start_delay.as_secs();
        options.listen_delay = start_delay;
        options.droplet_stale_threshold_secs = stale_threshold.as_secs();
        options.prune_interval = prune;
        options.empty_pool_timeout = Duration::ZERO;
        Ok(Self::Boxed(Box::new(HttpRouter::start(options).await?)))
    }

    /// One more on the foundation's NATS that outlives a silence, where this host answers already.
    pub async fn patient(foundation: &Foundation, host: &str) -> Result<Self> {
        let front = Self::start(foundation, &foundation.stack.nats, FrontTimes::PATIENT).await?;
        probe::answers(front.address(), host, &[200]).await;
        Ok(front)
    }

    /// Where HTTP clients go.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Boxed(router) => router.addr(),
            Self::Real(router) => router.address(),
        }
    }

    /// Its table, in gorouter's own shape.
    pub async fn routes(&self) -> Value {
        match self {
            Self::Boxed(router) => router.routes(),
            Self::Real(router) => router.routes().await.unwrap_or_default(),
        }
    }

    /// Ends it and starts it with an empty table; returns when it serves.
    pub async fn restart(&mut self) -> Result<()> {
        match self {
            Self::Boxed(router) => router.restart().await,
            Self::Real(router) => router.restart().await,
        }
    }
}

/// How the sandbox's router gets into a NATS server.
pub(crate) fn bus(nats: &NatsServer, pki: &Pki) -> NatsClientOptions {
    let options = nats.options();
    let mut bus = NatsClientOptions::plain(nats.address());
    bus.user = Some((options.user.clone(), options.password.clone()));
    bus.tls = options.mutual_tls.then(|| NatsClientTls {
        ca_pem: pki.ca_pem.clone(),
        identity: Some(identity(&pki.client)),
        server_name: "nats.service.test".to_owned(),
    });
    bus
}

/// The same identity in the sandbox's words.
pub(crate) fn identity(identity: &counterparts::Identity) -> Identity {
    Identity {
        cert_pem: identity.cert_pem.clone(),
        key_pem: identity.key_pem.clone(),
    }
}
