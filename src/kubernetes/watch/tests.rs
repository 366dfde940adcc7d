//! Units of the watch that need no apiserver.
