//! The whole job against whole foundations, scenario by scenario.

mod http;
mod tcp;
