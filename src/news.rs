//! Channels that wake their readers for news alone.

use tokio::sync::watch;

/// Replaces what is told, and wakes whoever reads it where the new differs. Whether it does.
pub(crate) fn tell<T: PartialEq>(to: &watch::Sender<T>, new: T) -> bool {
    to.send_if_modified(|old| {
        let differs = *old != new;
        *old = new;
        differs
    })
}
