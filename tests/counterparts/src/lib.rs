//! The real programs that route-sync speaks to, set up and started for the tests.
//!
//! Owns how each program is found, configured, started, frozen, killed and read. Knows nothing of
//! route-sync: a test starts what it needs here and runs the controller against it.
//!
//! | program | comes from | |
//! |---|---|---|
//! | [`Etcd`], [`KubeApiserver`], [`NatsServer`], [`Locket`] | Go modules | set up by `setup` |
//! | [`Uaa`] | Maven artifacts | set up by `setup` |
//! | [`MariaDb`], [`Nginx`], HAProxy | Debian packages | installed by `setup` |
//! | [`Gorouter`], [`RoutingApi`], [`TcpRouter`] | handed in as binaries | see [`handed_in`] |
//!
//! Several of them bind every interface: run tests that use them through `private-network`.

pub mod etcd;
pub mod gorouter;
pub mod kube_apiserver;
pub mod locket;
pub mod mariadb;
pub mod nats_server;
pub mod nginx;
pub mod pki;
pub mod port;
pub mod process;
pub mod programs;
pub mod routing_api;
pub mod run;
pub mod stack;
pub mod tcp_router;
pub mod uaa;

pub use etcd::Etcd;
pub use gorouter::{Gorouter, GorouterOptions};
pub use kube_apiserver::{KubeApiserver, KubeApiserverOptions, TokenUser};
pub use locket::Locket;
pub use mariadb::{MariaDb, MariaDbOptions};
pub use nats_server::{NatsServer, NatsServerOptions};
pub use nginx::Nginx;
pub use pki::{Identity, Pki};
pub use process::{Process, Program};
pub use programs::{handed_in, not_confirmed};
pub use routing_api::{RouterGroup, RoutingApi, RoutingApiOptions};
pub use run::{RunFolder, in_private_network};
pub use stack::{Stack, StackOptions};
pub use tcp_router::{TcpRouter, TcpRouterOptions};
pub use uaa::{Uaa, UaaClient, UaaOptions};
