//! The whole job against whole foundations, scenario by scenario.

mod annotations;
mod budget;
mod compatibility;
mod conflicts;
mod groups;
mod http;
mod independence;
mod nodes;
mod poison;
mod process;
mod sources;
mod steady;
mod strangers;
mod tcp;
mod tokens;
