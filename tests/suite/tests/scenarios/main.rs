//! The whole job against whole foundations, scenario by scenario.

mod compatibility;
mod http;
mod independence;
mod process;
mod tcp;
