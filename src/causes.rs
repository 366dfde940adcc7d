//! An error with everything that caused it, for people.
//!
//! The one place that walks a chain of causes; each error's own words say its layer only. Which errors there are,
//! and where they are told, is unknown here.

use std::error::Error;

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries, hyper among them, already print their cause; twice tells no more.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("{0}")]
        Plain(&'static str),
        #[error("cannot do it")]
        Over(#[source] Box<Self>),
        #[error("client: {0}")]
        Repeats(#[source] Box<Self>),
    }

    #[test]
    fn every_cause_is_told_once() {
        let cause = || Box::new(Layer::Plain("refused"));
        assert_eq!(chain(&Layer::Over(cause())), "cannot do it: refused");
        let repeats = Layer::Over(Box::new(Layer::Repeats(cause())));
        assert_eq!(chain(&repeats), "cannot do it: client: refused");
    }
}
