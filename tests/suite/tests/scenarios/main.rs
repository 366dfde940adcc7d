//! The whole job against whole foundations, scenario by scenario.

mod annotations;
mod another_cluster;
mod budget;
mod compatibility;
mod conflicts;
mod drain;
mod drift;
mod foreign_hosts;
mod groups;
mod guard;
mod hand_over;
mod http;
mod independence;
mod nodes;
mod poison;
mod process;
mod reload;
mod restart;
mod rotation;
mod sources;
mod steady;
mod strangers;
mod tcp;
mod tokens;
mod two_instances;
mod under_load;
