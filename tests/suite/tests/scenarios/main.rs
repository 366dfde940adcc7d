//! The whole job against whole foundations, scenario by scenario.

mod annotations;
mod another_cluster;
mod budget;
mod compatibility;
mod conflicts;
mod drift;
mod foreign_hosts;
mod groups;
mod guard;
mod http;
mod independence;
mod nodes;
mod poison;
mod process;
mod restart;
mod sources;
mod steady;
mod strangers;
mod tcp;
mod tokens;
mod under_load;
