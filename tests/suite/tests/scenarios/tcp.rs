//! Labelling a Service opens its port on the tcp-router, and unlabelling closes it.
