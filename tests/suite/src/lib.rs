//! The controller, as it is shipped, against whole foundations.
//!
//! A scenario is one function over a [`Foundation`]. [`on_each_stage`] runs it twice: with the sandbox's routers
//! and routing API, always, and with the real gorouter, routing-api and cf-tcp-router where they were handed in.
//! The apiserver, NATS, UAA and every database are the real ones both times. Where a real router is absent the
//! scenario's statement is written down as not confirmed; it never counts as passed.

pub mod backend;
pub mod cluster;
pub mod controller;
pub mod foundation;
pub mod front;
pub mod job;
pub mod kube_proxy;
pub mod poll;
pub mod probe;
pub mod served;
pub mod subject;
pub mod switch;

pub use backend::{Echo, Web, node_addresses};
pub use cluster::Cluster;
pub use controller::{Controller, Settings};
pub use foundation::{Foundation, Stage, example, on_each_stage, on_real_stage, on_stage};
pub use front::{FrontTimes, HttpFront};
pub use job::{Job, Manifest, Stop};
pub use kube_proxy::KubeProxy;
pub use poll::{eventually, stays, within};
pub use probe::{HttpLoop, TcpLoop, answers, backends, http_get, http_status, opens, tcp_line};
pub use served::{Served, closes, leads_to, on_nodes};
pub use subject::{Line, Site};
pub use switch::Switch;
