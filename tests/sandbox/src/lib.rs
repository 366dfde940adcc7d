//! A foundation in a box: small programs that speak as the real ones were measured to speak.

pub mod apiserver;
pub mod demo;
pub mod http_router;
pub mod listen;
pub mod nats;
pub mod routing_api;
pub mod tcp_router;
pub mod tls;
pub mod uaa;
