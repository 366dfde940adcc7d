//! The whole job against whole foundations, scenario by scenario.

mod annotations;
mod compatibility;
mod conflicts;
mod http;
mod independence;
mod nodes;
mod poison;
mod process;
mod sources;
mod steady;
mod tcp;
