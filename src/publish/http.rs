//! The HTTP lane.
