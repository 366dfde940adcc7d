//! The TCP lane.
