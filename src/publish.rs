//! Publishing: what makes the routers know the desired table.

pub mod http;
pub mod tcp;
pub mod tls;
