//! The whole job against whole foundations, scenario by scenario.

mod annotations;
mod conflicts;
mod http;
mod nodes;
mod poison;
mod sources;
mod steady;
mod tcp;
