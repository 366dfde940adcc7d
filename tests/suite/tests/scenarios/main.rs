//! The whole job against whole foundations, scenario by scenario.

mod budget;
mod groups;
mod http;
mod strangers;
mod tcp;
mod tokens;
