//! Watching Kubernetes: what we watch, with which rights, and what is made of it.

pub mod snapshot;
